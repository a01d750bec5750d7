"""Stop a run whose controller is on another host: asked by a file of the run folder, where no signal reaches. DO."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from launcher.backends.slurm import QueueState
from launcher.errors import LauncherError, Problem
from launcher.rundir.events import append_event
from launcher.rundir.folder import RunDir, write_json
from launcher.rundir.leave import SAVE_S
from launcher.supervise import queue
from launcher.supervise.lock import find_owner, this_process
from launcher.supervise.stop import REQUEST

LOOK_S = 1.0
STOP_WAIT_S = SAVE_S + 120.0  # ranks may be saving, and folders that hosts share show news late
END_WAIT_S = 150.0  # where they shall not
CANCEL_WAIT_S = 90.0  # SLURM's own patience with what it ends


def ask_to_stop(run: RunDir, *, now: bool = False) -> None:
    """`now`: without another checkpoint."""
    append_event(run.events, "stop.asked")
    who = {"host": this_process().host, "pid": os.getpid(), "t": time.time()}
    write_json(run.stop_request, {"schema": 1, "now": now, **who})


def take_back(run: RunDir, job: QueueState) -> None:
    """Out of the queue, where nobody is there yet who could hear. LauncherError E442."""
    queue.cancel(job.job)
    append_event(run.events, "run.stopped", stage="", signal=REQUEST)


def forget_request(run: RunDir) -> None:
    run.stop_request.unlink(missing_ok=True)


def is_elsewhere(run: RunDir) -> bool:
    """Whether a job of a queue, or a process of another host, has the run. LauncherError E442."""
    job = queue.job_state(run)
    if job is not None:
        return not job.over
    owner = find_owner(run)
    return owner is not None and owner.host != this_process().host


def stop_elsewhere(run: RunDir, *, now: bool = False) -> None:
    """Returns when it has stopped; `now`: without another checkpoint.

    LauncherError E507 where it does not, E442 where its queue cannot be asked.
    """
    job = queue.job_state(run)
    if job is not None and job.waits:
        take_back(run, job)
    else:
        ask_to_stop(run, now=now)
    wait_s = END_WAIT_S if now else STOP_WAIT_S
    try:
        if _wait(run, wait_s):
            return
        if job is not None:
            queue.cancel(job.job)
            if _wait(run, CANCEL_WAIT_S):
                return
    finally:
        forget_request(run)
    owner = find_owner(run)
    where = f"process {owner.pid} on {owner.host}" if owner else f"job {job.job if job else ''}"
    what = f"{where} controls it, and did not stop within {wait_s:.0f} s of being asked"
    hint = f"run launcher stop on that host; if it is gone for good, remove {run.path}/controller.json"
    raise LauncherError(Problem(code="E507", where=str(run.path), what=what, hint=hint))


def _wait(run: RunDir, wait_s: float) -> bool:
    """Whether it has stopped by then."""
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s:
        with suppress(LauncherError):  # a queue that does not answer is asked again
            if not is_elsewhere(run):
                return True
        time.sleep(LOOK_S)
    return False
