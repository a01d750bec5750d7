"""(job text, JobSpec, Plan) -> RunDir: the folder with everything that the ranks, a shell or a reader needs.

DO: names and files. `commands.sh` starts the stages without this program: by the very requests that the watch starts, or, over
ssh, by DeepSpeed's own launcher.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from launcher.backends.fleet_order import write_fleet_order
from launcher.backends.registry import Fleets, Renders, Scripts, load_backend
from launcher.backends.request import LaunchRequest
from launcher.dsconfig.order import stage_order
from launcher.dsconfig.render import ds_config
from launcher.errors import LauncherError, Problem
from launcher.plan.plan import Plan
from launcher.rundir.folder import RunDir, write_atomic, write_json
from launcher.rundir.order import write_order
from launcher.spec.job import JobSpec
from launcher.supervise.sealed import PLANNED, sealed_texts

DEFAULT_PORT = 29500
_ID_HEX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A job that has a plan: what a run folder is written from."""

    job: JobSpec
    job_text: str  # the job file as given
    plan: Plan


def new_run(runs_root: Path, job_name: str, *, now: datetime, random_bytes: Callable[[int], bytes]) -> RunDir:
    """Where the run will lie: `<runs>/<job>/<UTC time>-<random>`; names only, nothing is made."""
    run_id = f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{random_bytes(_ID_HEX // 2).hex()}"
    return RunDir(Path(os.path.realpath(runs_root)) / job_name / run_id)


def make_folder(run: RunDir) -> None:
    """The folder, for this user alone: it holds data and models. LauncherError E404 where it cannot be made."""
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
        run.path.mkdir(mode=0o700)
    except OSError as error:
        what = f"the run folder cannot be made: {error.strerror}"
        hint = "choose another folder with --runs DIR or LAUNCHER_RUNS"
        raise LauncherError(Problem(code="E404", where=str(error.filename or run.path), what=what, hint=hint)) from None


def write_run(run: RunDir, planned: Planned) -> None:
    """Everything but events: job as given and as loaded, plan, DeepSpeed configs, stage orders, hostfile, commands.

    LauncherError E404 where the disk does not take it.
    """
    try:
        _write(run, planned)
    except OSError as error:
        what = f"the run folder cannot be written: {error.strerror}"
        hint = "free space, or choose another folder with --runs DIR or LAUNCHER_RUNS"
        raise LauncherError(Problem(code="E404", where=str(error.filename or run.path), what=what, hint=hint)) from None


def _write(run: RunDir, planned: Planned) -> None:
    backend = load_backend(planned.job.cluster.backend)
    write_atomic(run.job_yaml, planned.job_text)
    write_json(run.plan_json, planned.plan.as_dict())
    for stage in planned.plan.stages:
        write_json(run.ds_config(stage.name), ds_config(planned.job, stage))
        write_order(run.order(stage.name), stage_order(planned.job, planned.plan, stage.name))
    if isinstance(backend, Fleets | Renders):
        for stage in planned.plan.stages:
            write_fleet_order(run, backend.fleet_order(planned.job, planned.plan, run, stage.name))
    if isinstance(backend, Renders):
        sealed = sealed_texts(planned.job, planned.job_text, planned.plan)
        write_atomic(run.path / PLANNED, sealed[PLANNED])
        for name, text in backend.rendered(planned.job, planned.plan, run, sealed).items():
            write_atomic(run.rendered / name, text)
    else:
        write_atomic(run.rendered / "hostfile", backend.hostfile_text(planned.plan.machine))
        for name, text in scripts(run, planned).items():
            write_atomic(run.rendered / name, text)
    # Last, because a folder with job.json is a run: before it, a crash leaves nothing that anybody takes for one.
    write_json(run.job_json, planned.job.model_dump(mode="json", by_alias=True))


def requests(run: RunDir, planned: Planned, *, port: int = DEFAULT_PORT) -> list[LaunchRequest]:
    """Prepare and then every stage, in order."""
    backend, job, plan = load_backend(planned.job.cluster.backend), planned.job, planned.plan
    stages = [backend.stage_request(job, plan, run, stage.name, port=port) for stage in plan.stages]
    return [backend.prepare_request(job, run), *stages]


def scripts(run: RunDir, planned: Planned) -> dict[str, str]:
    """Files of rendered/ that run the chain without supervision: commands.sh and what it reads."""
    backend = load_backend(planned.job.cluster.backend)
    if isinstance(backend, Scripts):
        return backend.script(planned.job, planned.plan, run, port=DEFAULT_PORT)
    return {"commands.sh": commands_text(run, planned)}


def commands_text(run: RunDir, planned: Planned) -> str:
    """A shell script that runs the chain without supervision: it stops at the first command that fails."""
    lines = [
        "#!/bin/sh",
        f"# Job {planned.job.name}: prepare, then each stage. Works without `launcher`, but then nobody checks that every",
        "# rank succeeded, that artifacts are whole and gates are held.",
        f"# The ranks meet on port {DEFAULT_PORT} of this machine: choose another where it is taken.",
        "set -e",
    ]
    for request in requests(run, planned):
        lines += [f"# {request.stage}", request.shell_text()]
    return "\n".join(lines) + "\n"
