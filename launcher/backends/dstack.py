"""(job, plan, run folder) -> a task of dstack: `dstack apply` finds the nodes and starts the same command on each. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from launcher.backends import clouds, joined
from launcher.backends.clouds import cloud_of, known_name
from launcher.backends.manifest import yaml_text
from launcher.plan.plan import Plan
from launcher.rundir.folder import RunDir
from launcher.spec.job import JobSpec
from launcher.spec.kubernetes import object_name

find_problems = clouds.find_problems
prepare_request = joined.prepare_request
stage_request = joined.stage_request
fleet_order = joined.fleet_order
hostfile_text = joined.hostfile_text

FILE = "task.dstack.yml"
SEALED = "/etc/launcher"  # where a node finds what was rendered
SHM = "16GB"


def rendered(job: JobSpec, plan: Plan, run: RunDir, sealed: Mapping[str, str]) -> dict[str, str]:
    """Name below rendered/ -> text. Without a volume the folder of the runs is one that the machines themselves share."""
    cloud, known = cloud_of(job), known_name(job)
    gpu: dict[str, object] = {"name": cloud.accelerator or (known[1] if known else ""), "count": plan.machine.slots}
    if cloud.accelerator is None and known:
        gpu["memory"] = f"{known[2]}GB"
    volume = {"name": cloud.volume} if cloud.volume else {"instance_path": cloud.runs}
    task: dict[str, object] = {
        "type": "task",
        "name": object_name(job.name),
        "nodes": plan.machine.nodes,
        "image": cloud.image,
        "env": [f"HF_HOME={joined.node_env(job)['HF_HOME']}", *job.cluster.secrets],
        "files": [{"local_path": f"../{path}", "path": f"{SEALED}/{path}"} for path in sealed],
        "commands": [shlex.join(joined.node_argv(job, run, SEALED))],
        "volumes": [{**volume, "path": cloud.runs}],
        "resources": {"gpu": gpu, "shm_size": SHM},
        "retry": {"on_events": ["no-capacity", "interruption"]},
    }
    return {FILE: yaml_text([task], head=f"Job {job.name}. {joined.VERSIONED}")}


def next_step(job: JobSpec, run: RunDir) -> str:
    """Secrets are taken from the shell that runs it."""
    return shlex.join(["dstack", "apply", "-f", str(run.rendered / FILE)])
