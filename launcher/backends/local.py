"""(job, plan, run folder) -> LaunchRequest for ranks on this machine, through the real `deepspeed` launcher. Pure.

The hostfile names localhost only, which DeepSpeed starts without ssh. DeepSpeed sets CUDA_VISIBLE_DEVICES from the slots
and forgets the user's; where only some GPUs are meant, `--include` names them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from launcher.backends.request import TOKEN, LaunchRequest
from launcher.errors import Problem
from launcher.plan.plan import Machine, Plan
from launcher.rundir.folder import RunDir
from launcher.spec.cluster import ClusterSpec
from launcher.spec.job import JobSpec

PREPARE, CALIBRATE, BLUEPRINT, MEET = "prepare", "calibrate", "blueprint", "meet"
HOST = "localhost"
MASTER_ADDRESS = "127.0.0.1"

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

# What this file or DeepSpeed's launch.py sets for every rank: a user's value would be overwritten without a word.
RESERVED = frozenset(
    (
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", TOKEN),
    )
)


def find_problems(job: JobSpec) -> list[Problem]:
    """What of the job this backend would have to ignore: refused instead."""
    return [
        Problem(
            code="E412",
            where=f"cluster.env.{name}",
            what=f"{name} is set by the launcher for every rank, so this value would have no effect",
            hint="choose GPUs with CUDA_VISIBLE_DEVICES in the shell of `launcher run`"
            if "CUDA" in name
            else "remove the line",
        )
        for name in sorted(RESERVED & set(job.cluster.env))
    ]


def hostfile_text(machine: Machine) -> str:
    """DeepSpeed's hostfile: enough slots that every GPU which is meant has its number among them."""
    return f"{HOST} slots={max((machine.slots, *(number + 1 for number in machine.devices)))}\n"


def prepare_request(job: JobSpec, run: RunDir) -> LaunchRequest:
    """One CPU process that makes data, tokenizer and base model ready before any rank starts. It alone may use the hub."""
    argv = (sys.executable, "-u", "-m", "launcher.stages", "prepare", str(run.path))
    env = _env(job.cluster.env, run, DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="true")
    return LaunchRequest(stage=PREPARE, argv=argv, env=env, world=1)


def stage_request(job: JobSpec, plan: Plan, run: RunDir, stage: str, *, port: int) -> LaunchRequest:
    """The ranks of one stage, under the `deepspeed` that stands beside this Python."""
    machine, world = plan.machine, plan.stage(stage).world
    argv = (*_ranks(machine, run, world, port), "train", str(run.path), stage)
    return LaunchRequest(stage=stage, argv=argv, env=rank_env(job.cluster, machine, run, ranks=world), world=world)


def rank_env(cluster: ClusterSpec, machine: Machine, run: RunDir, *, ranks: int) -> tuple[tuple[str, str], ...]:
    """What every rank of a stage finds in its environment. `ranks`: on its host."""
    return _env(cluster.env, run, **OFFLINE, **_device_env(machine, ranks))


def calibrate_request(machine: Machine, run: RunDir, *, port: int, starter: int) -> LaunchRequest:
    """All ranks of the machine, started as those of a stage are, to measure it. They end with process `starter`."""
    argv = (*_ranks(machine, run, machine.slots, port), "calibrate", str(run.path), machine.device, str(starter))
    env = _env({}, run, **OFFLINE, **_device_env(machine, machine.slots))
    return LaunchRequest(stage=CALIBRATE, argv=argv, env=env, world=machine.slots)


def blueprint_request(run: RunDir) -> LaunchRequest:
    """One CPU process that builds the model of the folder's config.json without weights. It asks nobody."""
    argv = (sys.executable, "-u", "-m", "launcher.stages", "blueprint", str(run.path))
    return LaunchRequest(stage=BLUEPRINT, argv=argv, env=_env({}, run, **OFFLINE, CUDA_VISIBLE_DEVICES=""), world=1)


def meet_request(cluster: ClusterSpec, machine: Machine, run: RunDir, *, port: int) -> LaunchRequest:
    """All ranks of the machine, started as those of a stage are, only to meet."""
    argv = (*_ranks(machine, run, machine.slots, port), "meet", str(run.path), machine.device, str(machine.slots))
    env = rank_env(cluster, machine, run, ranks=machine.slots)
    return LaunchRequest(stage=MEET, argv=argv, env=env, world=machine.slots)


def _ranks(machine: Machine, run: RunDir, world: int, port: int) -> tuple[str, ...]:
    """`deepspeed … launcher.stages`, for what each rank shall do."""
    argv = [str(Path(sys.executable).parent / "deepspeed"), "--hostfile", str(run.rendered / "hostfile")]
    argv += ["--no_ssh_check", "--master_addr", MASTER_ADDRESS, "--master_port", str(port)]
    argv += _include(machine, world)
    return (*argv, "--no_local_rank", "--module", "launcher.stages")


def _device_env(machine: Machine, world: int) -> dict[str, str]:
    env = {"DS_ACCELERATOR": machine.device, "OMP_NUM_THREADS": str(max(1, machine.cores // world))}
    # DeepSpeed's Muon calls torch.compile while it is imported, which loads the compiler: a second of every CPU rank's start
    return env if machine.device == "cuda" else {**env, "TORCHDYNAMO_DISABLE": "1"}


def _include(machine: Machine, world: int) -> list[str]:
    """Nothing where the ranks take slots 0, 1, … in order, which is DeepSpeed's own choice."""
    numbers = machine.devices[:world] or tuple(range(world))
    if hostfile_text(machine) == f"{HOST} slots={world}\n" and numbers == tuple(range(world)):
        return []
    return ["--include", f"{HOST}:{','.join(map(str, numbers))}"]


def _env(users: Mapping[str, str], run: RunDir, **own: str) -> tuple[tuple[str, str], ...]:
    """Ours, then the user's (spec: cluster.env), which may change all but what is RESERVED."""
    common = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that GPU numbers mean what the driver's list shows
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # `python -m` puts the current folder first: a checkout of DeepSpeed beside the job file would shadow the package
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        TOKEN: str(run.path),
    }
    return tuple(sorted({**common, **own, **users}.items()))
