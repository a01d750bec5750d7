"""A run whose controller is on a node that somebody else starts, seen from where `launcher run` was typed. DO.

Node 0 controls the run (cli/node.py); here it is given to a queue or a starter (`mpirun`, `srun`), its talk is told on, it is
asked to stop, and in the end it is judged by what it has written: never by the exit code of what started it.

    starter.json    the process that started the nodes, where it is one of this host
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from launcher.backends.registry import Starts
from launcher.backends.request import LaunchRequest
from launcher.backends.shell import Child, boot_id, is_alive, read_stat, send, start
from launcher.backends.slurm import QueueState
from launcher.errors import LauncherError, Problem
from launcher.rundir.events import read_events
from launcher.rundir.folder import RunDir, read_json, write_json
from launcher.supervise import queue
from launcher.supervise.asking import STOP_WAIT_S, ask_to_stop, forget_request, take_back
from launcher.supervise.chain import Ending
from launcher.supervise.evidence import problem_from
from launcher.supervise.journal import Journal
from launcher.supervise.lock import Owner, find_owner, this_process
from launcher.supervise.stop import StopFlag, listening

LOOK_S, ASK_S = 0.5, 3.0  # at our own process; at the queue, which all its users ask
LAST_WORDS_S = 10.0
MOST_KEPT = 64 * 2**10  # characters of the talk


class Started(Protocol):
    """What starts the nodes, once it was told to."""

    def look(self) -> str:
        """For people: what it does, or how it ended. LauncherError where nobody knows."""

    @property
    def over(self) -> bool: ...

    def end(self) -> None:
        """At once."""


@dataclass(slots=True)
class Queued:
    """A job of SLURM."""

    run: RunDir
    state: QueueState

    def look(self) -> str:
        self.state = queue.job_state(self.run) or self.state
        return self.state.text()

    @property
    def over(self) -> bool:
        return self.state.over

    def end(self) -> None:
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

    def end(self) -> None:
        """What started the nodes ends them: mpirun through its daemons, srun through SLURM's."""
        if stat := read_stat(self.child.pid):
            send(Owner(pid=self.child.pid, started_ticks=stat.started_ticks, host="", boot="").process, signal.SIGTERM)


def give(run: RunDir, backend: Starts, words: Sequence[str], environ: Mapping[str, str] = os.environ) -> Started:
    """Have the nodes started. LauncherError E507 where that has been done, E442 where the queue refuses."""
    journal = Journal(run)
    forget_request(run)
    if backend.is_queued(environ):
        state, new = queue.submit(run, words)
        if new:
            journal.event("job.submitted", job=state.job)
        journal.say(state.text() if new else f"{state.text()}; it was submitted before")
        return Queued(run, state)
    _refuse_second(run)
    argv = ("sh", str(backend.script(run)), *words)
    request = LaunchRequest(stage="", argv=argv, env=(), world=0)
    child = start(request, cwd=run.path, log=run.controller_log, base_env=os.environ)
    _note_starter(run, child)
    journal.event("nodes.started", command=request.shell_text())
    return Starting(child)


def is_given(run: RunDir) -> bool:
    """Whether the run waits for its nodes or has them. LauncherError E442 where the queue cannot be asked."""
    state = queue.job_state(run)
    return not state.over if state else find_holder(run) is not None


def find_holder(run: RunDir) -> Owner | None:
    """Who started the run's nodes, else who controls the run. What a starter of this host started has ended with it."""
    try:
        starter = Owner(**read_json(_starter_file(run)))  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError):
        return find_owner(run)
    if starter.host != this_process().host:
        return find_owner(run)
    return starter if starter.boot == boot_id() and is_alive(starter.process) else None


def _note_starter(run: RunDir, child: Child) -> None:
    if stat := read_stat(child.pid):
        me = this_process()
        owner = Owner(pid=child.pid, started_ticks=stat.started_ticks, host=me.host, boot=me.boot)
        write_json(_starter_file(run), asdict(owner))


def _starter_file(run: RunDir) -> Path:
    return run.path / "starter.json"


def _refuse_second(run: RunDir) -> None:
    """LauncherError E507 where nodes of the run are there already."""
    if (holder := find_holder(run)) is not None:
        what = f"process {holder.pid} on {holder.host} controls this run"
        hint = f"wait for it, or end it: launcher stop {run.path.name}; if that host is gone, remove {run.path}/controller.json"
        raise LauncherError(Problem(code="E507", where=str(run.path), what=what, hint=hint))


# --- until its end ---


@dataclass(slots=True)
class Tail:
    """What is appended to a log from now on."""

    path: Path
    _at: int = 0
    last: str = ""  # of what was told

    def tell(self) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                text = file.read()
        except OSError:
            return
        self._at += len(text)
        if text and sys.stderr is not None:
            told = text.decode("utf-8", errors="replace")
            self.last = (self.last + told)[-MOST_KEPT:]
            sys.stderr.write(told)
            sys.stderr.flush()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def follow(run: RunDir, begin: Callable[[], Started]) -> tuple[Ending, str]:
    """Have the nodes started, tell what they say, wait for their end; INT and TERM ask the run to stop. How it ended, and what
    they said last.
    """
    log, seen = Tail(run.controller_log, _size(run.controller_log)), sum(1 for _ in read_events(run.events))
    with listening(StopFlag()) as stop:
        started = begin()
        _wait(run, started, log, stop)
    ending = _patiently(run, seen)
    log.tell()
    return ending or without_word(run, started), log.last


def _wait(run: RunDir, started: Started, log: Tail, stop: StopFlag) -> None:
    journal, told, next_ask_s, deadline_s = Journal(run), "", 0.0, None
    while not started.over:
        log.tell()
        if time.monotonic() >= next_ask_s:
            next_ask_s = time.monotonic() + ASK_S
            told = _tell_state(started, journal, told)
        if stop.asked and deadline_s is None:
            ask_to_stop(run)
            journal.say("asked the run to stop; a second Ctrl-C ends it at once")
            deadline_s = time.monotonic() + STOP_WAIT_S
            if isinstance(started, Queued) and started.state.waits:
                take_back(run, started.state)
        if deadline_s is not None and (stop.hard or time.monotonic() > deadline_s):
            started.end()
        time.sleep(LOOK_S)
    log.tell()
    forget_request(run)


def _tell_state(started: Started, journal: Journal, before: str) -> str:
    """A queue that does not answer is asked again: the run goes on without it."""
    try:
        now = started.look()
    except LauncherError as error:
        now = error.problems[0].text().splitlines()[0]
    if now != before and now:
        journal.say(now)
    return now


def _patiently(run: RunDir, seen: int) -> Ending | None:
    """Its last word may be seen here later than its end."""
    deadline_s = time.monotonic() + LAST_WORDS_S
    while (ending := ending_of(run, seen)) is None and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
    return ending


def ending_of(run: RunDir, seen: int) -> Ending | None:
    """How node 0 says that the run ended, in the events after the first `seen`; None where it has not."""
    ending = None
    for event in list(read_events(run.events))[seen:]:
        ending = _ending_of(event, ending)
    return ending


def _ending_of(event: Mapping[str, object], before: Ending | None) -> Ending | None:
    stage, told = str(event.get("stage", "")), event.get("problems")
    problems = tuple(problem_from(one) for one in told) if isinstance(told, list) else ()
    match event.get("kind"):
        case "run.started":
            return None
        case "run.finished":
            return Ending(state="done")
        case "run.stopped":
            step = event.get("step")
            saved = step if isinstance(step, int) else None
            return Ending(state="stopped", stage=stage, step=saved, signal=str(event.get("signal", "")))
        case "run.failed":
            return Ending(state="failed", stage=stage, problems=problems)
        case "node.refused" if before is None or before.state == "failed":
            return Ending(state="failed", problems=tuple(dict.fromkeys((*(before.problems if before else ()), *problems))))
    return before


def without_word(run: RunDir, started: Started) -> Ending:
    """Nodes that ended before node 0 could say why."""
    what = f"no node has said how the run ended: {started.look()}"
    hint = f"read {run.controller_log}; then resume: what has finished is kept"
    return Ending(state="failed", problems=(Problem(code="E521", where=str(run.path), what=what, hint=hint),))
