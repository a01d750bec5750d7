"""A run whose controller is on a node that somebody else starts, seen from where `launcher run` was typed. DO.

Node 0 controls the run (cli/node.py); here its talk is told on, it is asked to stop, and in the end the run is judged by what
was written into its folder: never by the exit code of what started the nodes (giving.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from launcher.errors import LauncherError, Problem
from launcher.rundir.events import read_events
from launcher.rundir.folder import RunDir
from launcher.supervise.asking import STOP_WAIT_S, ask_to_stop, forget_request
from launcher.supervise.chain import Ending
from launcher.supervise.evidence import problem_from
from launcher.supervise.giving import Started
from launcher.supervise.journal import Journal
from launcher.supervise.stop import StopFlag, listening
from launcher.supervise.tail import Tail, tail_of

LOOK_S, ASK_S = 0.5, 3.0  # at our own process; at the queue, which all its users ask
END_AGAIN_S = 60.0  # what was told to end may take its time
LAST_WORDS_S = 10.0


def follow(run: RunDir, begin: Callable[[], Started]) -> tuple[Ending, str]:
    """Have the nodes started, tell what they say, wait for their end; INT and TERM ask the run to stop. How it ended, and what
    they said last.
    """
    log, seen = tail_of(run.controller_log), sum(1 for _ in read_events(run.events))
    with listening(StopFlag()) as stop:
        started = begin()
        _wait(run, started, log, stop, seen)
    ending = _patiently(run, seen)
    log.tell()
    if ending is None:
        ending = without_word(run, started)
        Journal(run).problems("run.failed", list(ending.problems))
    return ending, log.last


def _wait(run: RunDir, started: Started, log: Tail, stop: StopFlag, seen: int) -> None:
    journal, told, next_ask_s, asked_s, end_s = Journal(run), "", 0.0, None, 0.0
    settled = Settled(run, seen)
    try:
        while not started.over:
            log.tell()
            if (now_s := time.monotonic()) >= next_ask_s:
                next_ask_s = now_s + ASK_S
                told = _tell_state(started, journal, told)
            if stop.asked and asked_s is None:
                ask_to_stop(run)
                journal.say("asked the run to stop; a second Ctrl-C ends it at once")
                asked_s = now_s
            overdue = asked_s is not None and (stop.hard or started.waits or now_s > asked_s + STOP_WAIT_S)
            if now_s >= end_s and (overdue or (not started.may_come_again and settled.for_long(now_s))):
                end_s = now_s + END_AGAIN_S
                with suppress(LauncherError):  # told by the next look; tried again
                    started.end()
            time.sleep(LOOK_S)
    finally:
        if asked_s is not None:
            forget_request(run)
    log.tell()


@dataclass(slots=True)
class Settled:
    """Whether node 0 has said how the run ended, a while ago: what started the nodes then waits for one that will not end."""

    run: RunDir
    seen: int
    _since_s: float | None = None
    _next_look_s: float = 0.0

    def for_long(self, now_s: float) -> bool:
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + ASK_S
            over = ending_of(self.run, self.seen) is not None
            self._since_s = (self._since_s or now_s) if over else None
        return self._since_s is not None and now_s > self._since_s + END_AGAIN_S


def _tell_state(started: Started, journal: Journal, before: str) -> str:
    """A queue that does not answer is asked again: the run goes on without it."""
    try:
        now = started.look()
    except LauncherError as error:
        now = error.problems[0].text().splitlines()[0]
    if now != before and now:
        journal.say(now)
    return now


# --- how it ended ---


def _patiently(run: RunDir, seen: int) -> Ending | None:
    """Its last word may be seen here later than its end."""
    deadline_s = time.monotonic() + LAST_WORDS_S
    while (ending := ending_of(run, seen)) is None and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
    return ending


def ending_of(run: RunDir, seen: int) -> Ending | None:
    """How node 0 says that the run ended, in the events after the first `seen`; None where it has not.

    Where a node has refused to take part, that is why the run did not end well, whatever came of it.
    """
    ending, refused = None, list[Problem]()
    for event in list(read_events(run.events))[seen:]:
        if event.get("kind") == "node.refused":
            refused += [one for one in _problems(event) if one not in refused]
        else:
            ending = _ending_of(event, ending)
    if refused and (ending is None or ending.state == "stopped"):
        return Ending(state="failed", problems=tuple(refused))
    return ending


def _ending_of(event: Mapping[str, object], before: Ending | None) -> Ending | None:
    stage, step = str(event.get("stage", "")), event.get("step")
    match event.get("kind"):
        case "run.started" | "job.submitted" | "nodes.started":
            return None
        case "run.finished":
            return Ending(state="done")
        case "run.stopped":
            saved = step if isinstance(step, int) else None
            return Ending(state="stopped", stage=stage, step=saved, signal=str(event.get("signal", "")))
        case "run.failed":
            return Ending(state="failed", stage=stage, problems=_problems(event))
    return before


def _problems(event: Mapping[str, object]) -> tuple[Problem, ...]:
    told = event.get("problems")
    return tuple(problem_from(one) for one in told) if isinstance(told, list) else ()


def without_word(run: RunDir, started: Started) -> Ending:
    """Nodes that ended before node 0 could say why."""
    try:
        how = started.look()
    except LauncherError as error:
        how = error.problems[0].what
    what = f"no node has said how the run ended: {how}"
    log = f"read {run.controller_log}; then " if run.controller_log.exists() else ""
    hint = f"{log}resume: what has finished is kept"
    return Ending(state="failed", problems=(Problem(code="E521", where=str(run.path), what=what, hint=hint),))
