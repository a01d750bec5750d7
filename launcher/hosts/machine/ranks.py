"""Follows the processes of one stage's ranks in /proc, so that the first death is seen while it can still be explained.

DO, only looking. launch.py polls its ranks once a second; in the time between a rank's death and that poll the kernel still
tells the wait status. After it, launch.py's exit code tells of the first death, and of others only the log.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Container
from dataclasses import dataclass, field, replace

from launcher.backends.shell import Process, find_processes, read_stat

LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A rank's process that ended without a marker. `wait_status` is None where nobody could read it in time."""

    rank: int
    seen_s: float
    wait_status: int | None

    @property
    def signal_number(self) -> int | None:
        known = self.wait_status is not None and os.WIFSIGNALED(self.wait_status)
        return os.WTERMSIG(self.wait_status) if known and self.wait_status is not None else None

    @property
    def exit_code(self) -> int | None:
        known = self.wait_status is not None and os.WIFEXITED(self.wait_status)
        return os.WEXITSTATUS(self.wait_status) if known and self.wait_status is not None else None

    @property
    def harmless(self) -> bool:
        """It ended by itself with 0, or by the signal with which launch.py ends the others after a first death."""
        return self.wait_status in (0, signal.SIGTERM)


def signal_told_by(exit_code: int) -> int | None:
    """launch.py exits with 256 - s when its first dead rank was killed by signal s."""
    number = 256 - exit_code
    return number if 0 < number < signal.NSIG else None


@dataclass(slots=True)
class RankTable:
    """The ranks of one attempt: found one after the other as they start, then looked at until they end."""

    token: str
    world: int
    alive: dict[int, Process] = field(default_factory=dict)
    ended: dict[int, Death] = field(default_factory=dict)
    _next_look_s: float = 0.0

    def look(self) -> None:
        """Find ranks that have started, note those that have ended. Dated by the wall clock, as the ranks date their words."""
        now_s = time.time()
        if len(self.alive) + len(self.ended) < self.world and now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_EVERY_S
            self._find()
        for rank, process in list(self.alive.items()):
            stat = read_stat(process.pid)
            if stat is None or stat.dead or stat.started_ticks != process.started_ticks:
                known = stat is not None and stat.started_ticks == process.started_ticks
                self.ended[rank] = Death(rank=rank, seen_s=now_s, wait_status=stat.wait_status if stat and known else None)
                del self.alive[rank]

    def explain(self, exit_code: int, *, finished: Container[int] = ()) -> Death | None:
        """The first death with the signal that launch.py's exit code tells, where it was too late to ask the kernel.

        `finished`: ranks that left their marker, whose end is no death. None where one look found several gone: launch.py ends
        the others after the first, and which that was nobody can tell.
        """
        number = signal_told_by(exit_code)
        deaths = [one for one in self.ended.values() if one.rank not in finished and not one.harmless]
        first_s = min((death.seen_s for death in deaths), default=0.0)
        first = [death for death in deaths if death.seen_s == first_s]
        if number is None or len(first) != 1 or first[0].wait_status is not None:
            return None
        self.ended[first[0].rank] = replace(first[0], wait_status=number)
        return self.ended[first[0].rank]

    def _find(self) -> None:
        """A rank's children (data loaders) carry its environment too: the rank is the one that started first."""
        for process in sorted(find_processes(self.token), key=lambda process: process.started_ticks):
            if process.rank is not None and process.rank not in self.ended:
                self.alive.setdefault(process.rank, process)
