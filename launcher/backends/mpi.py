"""(job, plan, run folder) -> the shell script that has Open MPI's mpirun start one process on each host. Pure.

MPI only starts them: each is told its place by Open MPI (hosts/nodes/place.py), and ranks talk over NCCL or gloo as elsewhere.
The environment of this shell does not travel, but for the names in cluster.secrets; that of the job does, as a file.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from launcher.backends import joined
from launcher.backends.request import MASTER
from launcher.plan.plan import Machine, Plan
from launcher.rundir.folder import RunDir
from launcher.spec.job import JobSpec

find_problems = joined.find_problems
prepare_request = joined.prepare_request
stage_request = joined.stage_request
fleet_order = joined.fleet_order

HAS_QUEUE = False
SCRIPT = "mpirun.sh"


def hostfile_text(machine: Machine) -> str:
    return "".join(f"{host} slots={machine.slots}\n" for host in machine.hosts)


def rendered(job: JobSpec, plan: Plan, run: RunDir, sealed: Mapping[str, str]) -> dict[str, str]:
    """Name below rendered/ -> text."""
    hosts = plan.machine.hosts
    names = [MASTER, *job.cluster.secrets]
    handed = [word for name in names for word in ("-x", name)]
    # A host that fails leaves the others to node 0, which tells why.
    words = ["mpirun", "--mca", "orte_abort_on_non_zero_status", "0", "-np", str(len(hosts)), "--map-by", "ppr:1:node"]
    words += ["--bind-to", "none", "--host", ",".join(hosts), *handed, *joined.node_argv(job, run, str(run.path))]
    lines = [
        "#!/bin/sh",
        f"# Job {job.name}, on {len(hosts)} hosts. Its words are handed on: `--stage NAME` runs one stage.",
        f"export {MASTER}={shlex.quote(hosts[0])}",
        "# mpirun takes root for a mistake; containers and images of clouds often have no other user.",
        '[ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1',
        f'exec {shlex.join(words)} "$@" </dev/null >/dev/null',
    ]
    return {SCRIPT: "\n".join(lines) + "\n", "hostfile": hostfile_text(plan.machine)}


def script(run: RunDir) -> Path:
    return run.rendered / SCRIPT


def next_step(job: JobSpec, run: RunDir) -> str:
    return shlex.join(["sh", str(script(run))])


def is_queued(environ: Mapping[str, str]) -> bool:
    return False


def program(environ: Mapping[str, str]) -> str:
    """That starts the nodes."""
    return "mpirun"


def num_nodes(environ: Mapping[str, str]) -> int | None:
    """That are there already: mpirun goes to those of the job."""
    return None
