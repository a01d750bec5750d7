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
from launcher.rundir.folder import RunDir, read_json, write_json
from launcher.supervise.lock import guard

ASK_S = 30.0  # that a busy controller of SLURM may take to answer
GONE = QueueState(job="", state="UNKNOWN", reason="the queue has forgotten it")


def submit(run: RunDir, words: Sequence[str] = ()) -> tuple[QueueState, bool]:
    """The run's job, and whether it is a new one. LauncherError E442 where the queue takes it not, or cannot be asked."""
    with guard(run):
        if found := find_job(run):
            _write(run, found.job)
            return found, False
        told = _ask(slurm.submit_argv(run, words))
        try:
            job = slurm.submitted_job(told)
        except ValueError as error:
            raise LauncherError(_refused("sbatch", str(error))) from None
        _write(run, job)
    return QueueState(job=job, state="PENDING"), True


def find_job(run: RunDir) -> QueueState | None:
    """The job of the run that waits or runs. LauncherError E442."""
    states = slurm.parse_states(_ask(slurm.find_argv(run)))
    return next((state for state, comment in states if comment == str(run.path) and not state.over), None)


def check_queue() -> None:
    """LauncherError E442 where it does not answer."""
    _ask(slurm.PING)


def job_state(run: RunDir) -> QueueState | None:
    """Of the run's job; None where it has none. A job that ended minutes ago is known no more. LauncherError E442."""
    try:
        job = str(read_json(_file(run))["job"])
    except (OSError, ValueError, KeyError):
        return None
    try:
        states = slurm.parse_states(_ask(slurm.state_argv(job)))
    except LauncherError as error:
        if any("Invalid job id" in problem.what for problem in error.problems):
            return QueueState(job=job, state=GONE.state, reason=GONE.reason)
        raise
    mine = [state for state, comment in states if comment == str(run.path)]  # numbers come again
    return mine[0] if mine else QueueState(job=job, state=GONE.state, reason=GONE.reason)


def cancel(job: str) -> None:
    _ask(slurm.cancel_argv(job))


def start_again(environ: Mapping[str, str] = os.environ) -> str | None:
    """From inside of a job: it goes back into the queue, and its processes end. None, or why SLURM does not do it."""
    if (job := environ.get(slurm.ALLOCATION)) is None:
        return "this is no job of SLURM"
    try:
        _ask(slurm.requeue_argv(job))
    except LauncherError as error:
        return error.problems[0].what
    return None


def _ask(argv: Sequence[str]) -> str:
    """What the program says. LauncherError E442 where it is not there, fails or does not answer."""
    try:
        done = run_tool(argv, wait_s=ASK_S)
    except FileNotFoundError:
        hint = "run it where SLURM's programs are, on a login node or inside an allocation"
        raise LauncherError(Problem(code="E442", where=argv[0], what="is not installed here", hint=hint)) from None
    except TimeoutError:
        raise LauncherError(_refused(argv[0], f"did not answer within {ASK_S:.0f} s")) from None
    if done.code != 0:
        said = [line.removeprefix(f"{argv[0]}: ") for line in done.errors.splitlines() if line.strip()]
        raise LauncherError(_refused(argv[0], said[-1] if said else f"ended with exit code {done.code}"))
    return done.output


def _refused(program: str, what: str) -> Problem:
    hint = "see whether SLURM's controller answers: scontrol ping"
    if program == "sbatch":
        hint = "correct cluster.slurm where it names what the cluster does not have; sinfo shows what there is"
    return Problem(code="E442", where=program, what=what, hint=hint)


def _file(run: RunDir) -> Path:
    return run.path / "slurm.json"


def _write(run: RunDir, job: str) -> None:
    write_json(_file(run), {"schema": 1, "job": job, "t": time.time()})
