"""Follows the processes of one stage's ranks in /proc, so that the first death is seen while it can still be explained.

DO, only looking. launch.py polls its ranks once a second; in the time between a rank's death and that poll the kernel still
tells the wait status. After it, only the log knows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from launcher.backends.shell import Process, find_processes, read_stat
from launcher.supervise.evidence import Death

LOOK_EVERY_S = 0.5


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

    def _find(self) -> None:
        """A rank's children (data loaders) carry its environment too: the rank is the one that started first."""
        for process in sorted(find_processes(self.token), key=lambda process: process.started_ticks):
            if process.rank is not None and process.rank not in self.ended:
                self.alive.setdefault(process.rank, process)
