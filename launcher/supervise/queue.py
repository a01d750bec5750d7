"""SLURM's queue, asked and told by its own programs: submit once, look, cancel, start again. DO, small: one program a call.

    slurm.json    the job that the run waits in or runs in; or ended in, the last time

A run has one job at most. One whose number was lost, because this program died before it wrote it down, is found by its name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.backends import slurm
from launcher.backends.shell import run_tool
from launcher.backends.slurm import QueueState
from launcher.errors import LauncherError, Problem
from launcher.rundir.events import read_events
from launcher.rundir.folder import RunDir, read_json, write_json

MOST_LINES = 4  # of what a program complains of
ASK_S = 30.0  # that a busy controller of SLURM may take to answer
# Of the shell: they would overrule the script, or hide jobs from us.
_OVERRULE = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SLURM_CLUSTERS")


def submit(run: RunDir, words: Sequence[str] = ()) -> QueueState:
    """A new job. To be called where nobody else can submit. LauncherError E442 where the queue does not take it."""
    try:
        job = slurm.submitted_job(_ask(slurm.submit_argv(run, words)))
    except (LauncherError, ValueError) as error:
        if (found := find_job(run)) is None:  # an answer that came too late was one all the same
            raise error if isinstance(error, LauncherError) else LauncherError(_refused("sbatch", str(error))) from None
        job = found.job
    _write(run, job)
    return QueueState(job=job, state="PENDING")


def find_job(run: RunDir) -> QueueState | None:
    """The job of the run that waits or runs, and is then known by its number. LauncherError E442."""
    states = slurm.parse_states(_ask(slurm.find_argv(run)))
    found = next((state for state, comment in states if comment == str(run.path) and not state.over), None)
    if found is not None:
        _write(run, found.job)
    return found


def check_queue() -> None:
    """LauncherError E442 where it does not answer."""
    _ask(slurm.PING)


def job_state(run: RunDir) -> QueueState | None:
    """Of the run's job; None where it has none. A job that ended minutes ago is known no more. LauncherError E442."""
    if (job := _noted_job(run)) is None:
        return None
    try:
        states = slurm.parse_states(_ask(slurm.state_argv(job)))
    except LauncherError as error:
        if _is_unknown(error):
            return slurm.forgotten(job)
        raise
    return next((state for state, comment in states if comment == str(run.path)), slurm.forgotten(job))  # numbers come again


def last_state(run: RunDir) -> QueueState | None:
    """The same; of a job that the queue knows no more, how it ended, where the cluster keeps accounts. LauncherError E442."""
    state = job_state(run)
    if state is None or state.state != slurm.FORGOTTEN:
        return state
    try:
        return slurm.parse_account(_ask(slurm.account_argv(state.job)), run) or state
    except LauncherError:  # a cluster without accounts says so as it says that it does not answer
        return state


def cancel(job: str) -> None:
    """LauncherError E442. A job that has just ended is no reason to complain."""
    try:
        _ask(slurm.cancel_argv(job))
    except LauncherError as error:
        if not _is_unknown(error):
            raise


def forget_job(run: RunDir) -> None:
    _file(run).unlink(missing_ok=True)


def go_again(run: RunDir, environ: Mapping[str, str] = os.environ) -> str:
    """From inside of the run's job, whose time is nearly over: it goes back into the queue, and its processes end. In words.

    Not where somebody wants the run to stop, and not where a whole time limit has brought it no further.
    """
    job = environ.get(slurm.ALLOCATION)
    if job is None or job != _noted_job(run):
        return "the time is nearly over; this job is not the run's own and is left to whoever submitted it"
    if run.stop_request.exists():
        return "the run is to stop: its job does not go back into the queue"
    if not _has_come_further(run):
        return (
            "nothing was finished or saved before the time limit: the job does not go back into the queue; raise slurm.minutes"
        )
    try:
        _ask(slurm.requeue_argv(job))
    except LauncherError as error:
        return f"SLURM does not put the job back into its queue: {error.problems[0].what}"
    return "back into the queue"


def _has_come_further(run: RunDir) -> bool:
    """Since the last controller has begun."""
    further = False
    for event in read_events(run.events):
        further = event["kind"] != "run.started" and (further or event["kind"] in ("stage.finished", "stage.left"))
    return further


def _ask(argv: Sequence[str]) -> str:
    """What the program says. LauncherError E442 where it is not there, fails or does not answer."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OVERRULE)}
    try:
        done = run_tool(argv, wait_s=ASK_S, env=env)
    except FileNotFoundError:
        hint = "run it where SLURM's programs are, on a login node or inside an allocation"
        raise LauncherError(Problem(code="E442", where=argv[0], what="is not installed here", hint=hint)) from None
    except TimeoutError:
        raise LauncherError(_refused(argv[0], f"did not answer within {ASK_S:.0f} s")) from None
    if done.code != 0:
        lines = [line.removeprefix(f"{argv[0]}: ").removeprefix("error: ") for line in done.errors.splitlines()]
        said = "; ".join([line for line in lines if line.strip()][:MOST_LINES])
        raise LauncherError(_refused(argv[0], said or f"ended with exit code {done.code}"))
    return done.output


def _is_unknown(error: LauncherError) -> bool:
    return any("Invalid job id" in problem.what for problem in error.problems)


def _refused(program: str, what: str) -> Problem:
    hint = "see whether SLURM's controller answers: scontrol ping"
    if program == "sbatch":
        hint = "correct cluster.slurm where it names what the cluster does not have; sinfo shows what there is"
    return Problem(code="E442", where=program, what=what, hint=hint)


def _noted_job(run: RunDir) -> str | None:
    try:
        return str(read_json(_file(run))["job"])
    except (OSError, ValueError, KeyError):
        return None


def _file(run: RunDir) -> Path:
    return run.path / "slurm.json"


def _write(run: RunDir, job: str) -> None:
    if job != _noted_job(run):
        write_json(_file(run), {"schema": 1, "job": job, "t": time.time()})
