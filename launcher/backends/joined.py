"""(job, plan, run folder) -> what each node does for a run whose nodes a scheduler starts. Pure; for all such schedulers alike.

Every node runs one command, `launcher node RUN --from DIR`. Node 0 controls the run as `launcher run` does elsewhere; the
others follow it over the run folder, which lies where all of them see it (hosts/nodes/).
"""

from __future__ import annotations

import sys
from pathlib import Path

from launcher import __version__
from launcher.backends import local
from launcher.backends.fleet_order import FleetOrder, launch_argv
from launcher.backends.request import TOKEN, LaunchRequest
from launcher.plan.plan import Machine, Plan
from launcher.rundir.folder import RunDir
from launcher.spec.cloud import CloudSpec
from launcher.spec.cluster import RENDERED
from launcher.spec.job import JobSpec
from launcher.spec.kubernetes import KubernetesSpec

VERSIONED = f"Made by zerolaunch {__version__}; the image needs the same version."
PYTHON = "python3"  # of the image
GATHER_GRACE_S = 75.0  # what the other nodes need to see a call and to end, the volume's delay counted

find_problems = local.find_problems
prepare_request = local.prepare_request


def block_of(job: JobSpec) -> KubernetesSpec | CloudSpec:
    """What the job says of nodes that have images and volumes of their own."""
    block = job.cluster.kubernetes or job.cluster.cloud
    assert block is not None  # spec: these backends have one
    return block


def run_on_nodes(job: JobSpec, run: RunDir) -> RunDir:
    """The run folder as nodes see it: the same one, or the same name below the runs folder of their volume."""
    return RunDir(Path(block_of(job).runs) / job.name / run.path.name) if _apart(job) else run


def node_argv(job: JobSpec, run: RunDir, source: str) -> list[str]:
    """The one command of every node. `source`: where it finds what was rendered."""
    return [python_of(job), "-u", "-P", "-m", "launcher", "node", str(run_on_nodes(job, run).path), "--from", source]


def python_of(job: JobSpec) -> str:
    """Of the image, or the one that runs here, which lies where all nodes see it."""
    return job.cluster.python or (PYTHON if _apart(job) else sys.executable)


def _apart(job: JobSpec) -> bool:
    """Whether nodes see other files than this machine."""
    return job.cluster.backend in RENDERED


def node_env(job: JobSpec) -> dict[str, str]:
    """Of the program on each node: caches of models on the volume, because every node needs them, and a home to write to."""
    return {"HOME": "/tmp", "USER": "launcher", "HF_HOME": f"{block_of(job).runs}/.cache/huggingface"}


def hostfile_text(machine: Machine) -> str:
    """For readers only: names are known to the scheduler alone."""
    return "".join(f"{host} slots={machine.slots}\n" for host in _hosts(machine.nodes))


def stage_request(job: JobSpec, plan: Plan, run: RunDir, stage: str, *, port: int) -> LaunchRequest:
    """On node 0: all nodes of one stage. `port` is not used: node 0 takes that of the order, or finds one that is free."""
    argv = (sys.executable, "-u", "-P", "-m", "launcher.hosts", "gather", str(run.path), stage)
    world, env = plan.stage(stage).world, ((TOKEN, str(run.path)),)
    return LaunchRequest(stage=stage, argv=argv, env=env, world=world, grace_s=GATHER_GRACE_S)


def fleet_order(job: JobSpec, plan: Plan, run: RunDir, stage: str) -> FleetOrder:
    """What every node reads from the run folder before it starts its launch.py."""
    machine, there = plan.machine, run_on_nodes(job, run)
    world = plan.stage(stage).world
    hosts = _hosts(-(-world // machine.slots))
    slots = world // len(hosts)
    devices = machine.devices or tuple(range(machine.slots))
    return FleetOrder(
        stage=stage,
        hosts=hosts,
        slots=slots,
        argv=launch_argv(python_of(job), hosts, devices[:slots], ("train", str(there.path), stage)),
        env=dict(local.rank_env(job.cluster, machine, there, ranks=slots)),
        port=block_of(job).port if _apart(job) else None,
        nodes=machine.nodes,
    )


def _hosts(nodes: int) -> tuple[str, ...]:
    return tuple(f"node{node}" for node in range(nodes))
