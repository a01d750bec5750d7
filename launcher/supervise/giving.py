"""A written run -> what starts its nodes: a job of a queue, or a program of this host (`mpirun`, `srun`). DO.

A run is given once: look and give stand under one lock, and whoever has it already is told (holder.py).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from launcher.backends.registry import Starts
from launcher.backends.request import LaunchRequest
from launcher.backends.shell import Child, Process, read_stat, send, start
from launcher.backends.slurm import QueueState
from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir
from launcher.supervise import queue
from launcher.supervise.asking import forget_request, take_back
from launcher.supervise.holder import Holder, forget_starter, holder_of, note_starter
from launcher.supervise.journal import Journal
from launcher.supervise.lock import find_owner, guard

LOOK_S = 0.5
HELD_WAIT_S = 20.0
COMPLETING_WAIT_S = 120.0  # SLURM's own patience with processes that do not end, and a look more


class Started(Protocol):
    """What starts the nodes, once it was told to."""

    def look(self) -> str:
        """For people: what it does, or how it ended. LauncherError where nobody knows."""

    @property
    def over(self) -> bool: ...

    @property
    def may_come_again(self) -> bool:
        """Whether an end may be followed by another beginning."""

    @property
    def waits(self) -> bool:
        """Whether there is nobody yet who could hear."""

    def end(self) -> None:
        """At once. LauncherError where it cannot be told."""


@dataclass(slots=True)
class Queued:
    """A job of SLURM."""

    run: RunDir
    state: QueueState

    def look(self) -> str:
        self.state = queue.last_state(self.run) or self.state
        return self.state.text()

    @property
    def over(self) -> bool:
        return self.state.over

    @property
    def may_come_again(self) -> bool:
        return True

    @property
    def waits(self) -> bool:
        return self.state.waits

    def end(self) -> None:
        if self.state.waits:
            take_back(self.run, self.state)
        else:
            queue.cancel(self.state.job)


@dataclass(slots=True)
class Starting:
    """A process of this host."""

    child: Child

    def look(self) -> str:
        code = self.child.poll()
        if code is None:
            return ""
        return "what started the nodes ended with " + (f"exit code {code}" if code >= 0 else signal.Signals(-code).name)

    @property
    def over(self) -> bool:
        return self.child.poll() is not None

    @property
    def may_come_again(self) -> bool:
        return False

    @property
    def waits(self) -> bool:
        return False

    def end(self) -> None:
        """What started the nodes ends them: mpirun through its daemons, srun through SLURM's."""
        if stat := read_stat(self.child.pid):
            send(Process(self.child.pid, stat.started_ticks), signal.SIGTERM)


def give(run: RunDir, backend: Starts, words: Sequence[str], environ: Mapping[str, str] = os.environ) -> Started:
    """Have the nodes started; a job that is in the queue already is joined.

    LauncherError E507 where somebody else has the run, E442 where the queue refuses.
    """
    journal = Journal(run)
    _wait_for_the_end_of_a_job(run)
    with guard(run):
        if (holder := holder_now(run, backend)) is not None:
            if holder.job is None or not backend.is_queued(environ):
                raise refusal(run, holder)
            journal.say(f"{holder.job.text()}; it was submitted before")
            return Queued(run, holder.job)
        forget_request(run)
        if backend.is_queued(environ):
            forget_starter(run)
            state = _submitted(run, words, journal)
            journal.event("job.submitted", job=state.job)
            journal.say(state.text())
            return Queued(run, state)
        queue.forget_job(run)
        request = LaunchRequest(stage="", argv=("sh", str(backend.script(run)), *words), env=(), world=0)
        child = start(request, cwd=run.path, log=run.controller_log, base_env=environ)
        note_starter(run, child.pid)
    journal.event("nodes.started", command=request.shell_text())
    return Starting(child)


def _submitted(run: RunDir, words: Sequence[str], journal: Journal) -> QueueState:
    try:
        return queue.submit(run, words)
    except LauncherError as error:
        journal.problems("run.failed", list(error.problems))  # so that the folder says it too
        raise


def wait_until_held(run: RunDir, started: Started) -> None:
    """Until a node controls the run, or for as long as that usually takes. LauncherError E514 where it never will."""
    deadline_s = time.monotonic() + HELD_WAIT_S
    while find_owner(run) is None and not started.waits and time.monotonic() < deadline_s:
        if started.over:
            hint = f"read {run.controller_log}"
            raise LauncherError(Problem(code="E514", where=str(run.path), what=started.look(), hint=hint))
        time.sleep(LOOK_S)


def refusal(run: RunDir, holder: Holder) -> LauncherError:
    hint = f"wait for it, or end it: launcher stop {run.path.name}; if it is gone for good, remove {run.path}/controller.json"
    return LauncherError(Problem(code="E507", where=str(run.path), what=holder.text().replace("\n", "; "), hint=hint))


def holder_now(run: RunDir, backend: Starts) -> Holder | None:
    """Also a job of the queue whose number was lost. LauncherError E442."""
    if (holder := holder_of(run)) is not None or not backend.HAS_QUEUE:
        return holder
    found = queue.find_job(run)
    return Holder(job=found) if found else None


def _wait_for_the_end_of_a_job(run: RunDir) -> None:
    """One whose run has ended is no more to be joined."""
    deadline_s = time.monotonic() + COMPLETING_WAIT_S
    while (job := queue.job_state(run)) is not None and job.state == "COMPLETING" and time.monotonic() < deadline_s:
        time.sleep(2 * LOOK_S)
