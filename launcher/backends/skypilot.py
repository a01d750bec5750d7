"""(job, plan, run folder) -> a task of SkyPilot: `sky jobs launch` rents nodes and starts the same command on each. Pure."""

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

FILE = "skypilot.yaml"
RESTARTS = 3  # after failures of the program itself; a machine that was taken away is replaced without counting


def rendered(job: JobSpec, plan: Plan, run: RunDir, sealed: Mapping[str, str]) -> dict[str, str]:
    """Name below rendered/ -> text. The task is launched from the folder above: SkyPilot takes that folder to every node."""
    cloud, known = cloud_of(job), known_name(job)
    task: dict[str, object] = {
        "name": object_name(job.name),
        "num_nodes": plan.machine.nodes,
        "resources": {
            "accelerators": {cloud.accelerator or (known[0] if known else ""): plan.machine.slots},
            "image_id": f"docker:{cloud.image}",
            "job_recovery": {"max_restarts_on_errors": RESTARTS},
        },
        "workdir": ".",
        "envs": {"HF_HOME": joined.node_env(job)["HF_HOME"]},
    }
    if cloud.volume:
        task["volumes"] = {cloud.runs: cloud.volume}
    if job.cluster.secrets:
        task["secrets"] = dict.fromkeys(job.cluster.secrets)  # null: SkyPilot refuses to launch without a value
    task["run"] = shlex.join(joined.node_argv(job, run, "."))
    return {FILE: yaml_text([task], head=f"Job {job.name}. {joined.VERSIONED}")}


def next_step(job: JobSpec, run: RunDir) -> str:
    secrets = [word for name in job.cluster.secrets for word in ("--secret", name)]
    return f"cd {shlex.quote(str(run.path))} && {shlex.join(['sky', 'jobs', 'launch', *secrets, f'rendered/{FILE}'])}"
