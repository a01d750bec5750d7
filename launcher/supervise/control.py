"""(RunDir, Planned) -> Ending: what `run` and `resume` share once there is a plan; and the job as a run folder holds it. DO."""

from __future__ import annotations

from launcher.errors import LauncherError, Problem
from launcher.hosts.machine.capacity import used_bytes
from launcher.rundir.folder import RunDir, read_json
from launcher.spec.job import JobSpec
from launcher.spec.load import LoadedJob
from launcher.spec.places import Places
from launcher.supervise import preflight
from launcher.supervise.chain import Chain, Ending
from launcher.supervise.create import Planned, write_run
from launcher.supervise.journal import Journal
from launcher.supervise.lock import controlling
from launcher.supervise.stop import StopFlag, listening


def stored_job(run: RunDir) -> LoadedJob:
    """The job as the run folder has it, overrides applied. LauncherError E510 where it cannot be read."""
    try:
        job = JobSpec.model_validate_json(run.job_json.read_text(encoding="utf-8"))
        text = run.job_yaml.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        what = f"the run's job cannot be read: {str(error).partition(chr(10))[0]}"
        hint = "resume with the job file: launcher resume RUN JOB"
        raise LauncherError(Problem(code="E510", where=str(run.path), what=what, hint=hint)) from None
    names = [stage.stage_name for stage in job.stages]
    return LoadedJob(job=job, text=text, places=Places(file_name=str(run.job_json), marks={}, stage_names=names))


def check_same_job(run: RunDir, job: JobSpec) -> None:
    """LauncherError E111 where a run would go on with the file of another job."""
    if job.name != run.path.parent.name:
        what = f"the job file is of job {job.name}, the run is of job {run.path.parent.name}"
        raise LauncherError(Problem(code="E111", where=str(run.path), what=what, hint="start a new run: launcher run JOB"))


def written_bytes(run: RunDir) -> int:
    """What the run has written of its plan so far: it needs no room a second time."""
    return used_bytes(run.path / "stages")


def check_stage(planned: Planned, name: str | None) -> None:
    """LauncherError E120 where --stage names no stage of the job."""
    names = [stage.stage_name for stage in planned.job.stages]
    if name is not None and name not in names:
        what = f"--stage {name}: the job has no such stage"
        raise LauncherError(Problem(code="E120", where=planned.job.name, what=what, hint=f"its stages are {', '.join(names)}"))


def control_new(run: RunDir, planned: Planned, *, only: str | None = None) -> Ending:
    """The same for a folder that was just made, of a job that was just checked: nothing of it can be left anywhere."""
    with controlling(run), listening(StopFlag(request=run.stop_request)) as stop:
        write_run(run, planned)
        return Chain(run, planned, Journal(run), stop).walk(only)


def control(run: RunDir, planned: Planned, *, only: str | None = None, quiet: bool = False, is_written: bool = False) -> Ending:
    """Hold the run, write its folder, walk its chain. LauncherError E507 where another process holds it.

    `is_written`: whoever planned it has written the folder.
    """
    journal = Journal(run, quiet=quiet)
    with controlling(run), listening(StopFlag(request=run.stop_request)) as stop:
        chain = Chain(run, planned, journal, stop)
        chain.end_leftovers()  # before memory is judged
        for one in preflight.check(planned.job, planned.plan, writable=run.path):
            journal.event("host.odd", **one.as_dict())
            journal.say(one.problem.text())
        if not is_written:
            _tell_changes(run, planned, journal)
            write_run(run, planned)
        return chain.walk(only)


def _tell_changes(run: RunDir, planned: Planned, journal: Journal) -> None:
    """A machine that has changed since the last attempt changes the plan: said, because checkpoints then may not fit."""
    try:
        before = read_json(run.plan_json)
    except (OSError, ValueError):
        return
    if _taken(before.get("stages")) != _taken(planned.plan.as_dict()["stages"]):
        journal.event("plan.changed")
        journal.say("the plan is another one than at the last attempt: see plan.json")


def _taken(stages: object) -> object:
    """Without what the plan did not take, which does not travel to nodes that come by themselves."""
    left_out = ("rejected", "pareto")
    return [{key: one[key] for key in one if key not in left_out} for one in stages] if isinstance(stages, list) else stages
