"""Stop a run whose controller is on another host: asked by a file of the run folder, where no signal reaches. DO."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

from launcher.backends.shell import send
from launcher.backends.slurm import QueueState
from launcher.errors import LauncherError, Problem
from launcher.rundir.events import append_event
from launcher.rundir.folder import RunDir, write_json
from launcher.rundir.leave import SAVE_S
from launcher.supervise import queue
from launcher.supervise.holder import Holder, holder_of
from launcher.supervise.stop import REQUEST

LOOK_S = 1.0
STOP_WAIT_S = SAVE_S + 120.0  # ranks may be saving, and folders that hosts share show news late
END_WAIT_S = 150.0  # where they shall not
CANCEL_WAIT_S = 90.0  # SLURM's own patience with what it ends


def ask_to_stop(run: RunDir, *, now: bool = False) -> None:
    """`now`: without another checkpoint."""
    append_event(run.events, "stop.asked")
    write_json(run.stop_request, {"schema": 1, "now": now})


def take_back(run: RunDir, job: QueueState) -> None:
    """Out of the queue, where nobody is there yet who could hear. LauncherError E442."""
    queue.cancel(job.job)
    append_event(run.events, "run.stopped", stage="", signal=REQUEST)


def forget_request(run: RunDir) -> None:
    run.stop_request.unlink(missing_ok=True)


def stop_elsewhere(run: RunDir, *, now: bool = False) -> None:
    """Returns when it has stopped; `now`: without another checkpoint. LauncherError E507 where it does not."""
    ask_to_stop(run, now=now)
    wait_s = END_WAIT_S if now else STOP_WAIT_S
    try:
        if (holder := _wait(run, wait_s)) is None:
            return
        if _end(holder) and (holder := _wait(run, CANCEL_WAIT_S)) is None:
            return
    finally:
        forget_request(run)
    what = f"{holder.text()}, and did not stop within {wait_s:.0f} s of being asked".replace("\n", "; ")
    hint = f"run launcher stop on that host; if it is gone for good, remove {run.path}/controller.json"
    raise LauncherError(Problem(code="E507", where=str(run.path), what=what, hint=hint))


def _wait(run: RunDir, wait_s: float) -> Holder | None:
    """Who still has it then. A job that waits, or waits again, is taken back."""
    deadline_s = time.monotonic() + wait_s
    while (holder := holder_of(run)) is not None and time.monotonic() < deadline_s:
        if holder.job is not None and holder.job.waits:
            with suppress(LauncherError):  # a queue that does not answer is asked again
                take_back(run, holder.job)
        time.sleep(LOOK_S)
    return holder


def _end(holder: Holder) -> bool:
    """Whether there is anything that could be ended from here."""
    if holder.job is not None:
        with suppress(LauncherError):
            queue.cancel(holder.job.job)
    if holder.starter is not None:
        send(holder.starter.process, signal.SIGTERM)
    return holder.job is not None or holder.starter is not None
