"""Signals to `launcher run`, or a file of the run folder -> a flag that the watch reads. DO.

INT or TERM asks to stop cleanly, a second one to stop at once. USR1 is a scheduler's word that the time is nearly over: it asks
once, however often it comes. HUP is ignored: closing the terminal does not end a run. The file is how another host asks, where
nobody can send a signal from.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launcher.rundir.folder import read_json

REQUEST = "stop.json"
LOOK_S = 0.5  # at the file, which may lie on a folder that many hosts share


@dataclass(slots=True)
class StopFlag:
    """Set by signals, read by the watch at every look."""

    count: int = 0
    signal_name: str = ""  # of the first one, which says why the run stops; REQUEST: the file
    request: Path | None = None
    _next_look_s: float = 0.0

    @property
    def asked(self) -> bool:
        if self.count < 2 and self.request is not None and time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + LOOK_S
            self._look(self.request)
        return self.count > 0

    def _look(self, request: Path) -> None:
        """A file counts as one request, or as the second where it says that it is for now."""
        try:
            now = read_json(request).get("now") is True
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            now = False
        self.count = max(self.count, 2 if now else 1)
        self.signal_name = self.signal_name or REQUEST

    @property
    def hard(self) -> bool:
        return self.count > 1

    def ask(self, number: int) -> None:
        if number == signal.SIGUSR1 and self.asked:
            return
        self.count += 1
        self.signal_name = self.signal_name or signal.Signals(number).name

    def wait(self, seconds: float) -> None:
        time.sleep(0 if self.asked else seconds)


@contextmanager
def listening(flag: StopFlag) -> Iterator[StopFlag]:
    """Route INT, TERM and USR1 into the flag while the block runs; the earlier handlers come back after it."""

    def handle(number: int, frame: FrameType | None) -> None:
        flag.ask(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
