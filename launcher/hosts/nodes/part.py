"""One node's part in a stage: its launch.py and ranks, from the start to the last process. DO.

The run folder is shared by all nodes; processes are only ever this node's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

from launcher.backends.request import TOKEN, LaunchRequest
from launcher.backends.shell import Child, Process, ask_to_leave, end_processes, start
from launcher.errors import LauncherError, Problem
from launcher.hosts.files.words import finished_ranks
from launcher.hosts.machine.ranks import Death, RankTable
from launcher.rundir.folder import RunDir, write_json

GRACE_S = 5.0
KILLED = -9


@dataclass(slots=True)
class Asked:
    """Whether INT or TERM came, and whether a second time."""

    to_end: bool = False
    at_once: bool = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.at_once = self.to_end
        self.to_end = True


@dataclass(slots=True)
class Part:
    """Started. `look` is called again and again until it tells an exit code."""

    run: RunDir
    stage: str
    host: str
    child: Child
    ranks: RankTable
    _told: set[int] = field(default_factory=set)

    def look(self) -> int | None:
        """The exit code once launch.py has ended; deaths of ranks are noted in the run folder."""
        self.ranks.look()
        code = self.child.poll()
        for rank, death in self.ranks.ended.items():
            if rank not in self._told:
                self._note(death)
            self._told.add(rank)
        if code is not None:
            finished = finished_ranks(self.run.stage(self.stage), self.ranks.ended)
            if (explained := self.ranks.explain(code, finished=finished)) is not None:
                self._note(explained)
        return code

    def _note(self, death: Death) -> None:
        if not finished_ranks(self.run.stage(self.stage), [death.rank]):
            told = {"t": death.seen_s, "wait_status": death.wait_status, "host": self.host}
            with suppress(OSError):  # a full disk: what is left is the exit code
                write_json(self.run.stage(self.stage).death(death.rank), told)

    def ask_to_leave(self) -> None:
        ask_to_leave(str(self.run.path))

    def end(self) -> int:
        """Nothing of the run is left on this node when this returns; the exit code. LauncherError E511 where something is."""
        end_leftovers(self.run, self.host)
        deadline_s = time.monotonic() + GRACE_S
        while (code := self.look()) is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        return KILLED if code is None else code


def end_leftovers(run: RunDir, host: str) -> None:
    """Ranks and their launch.py on this node, also of an attempt whose own program was killed. LauncherError E511."""
    _, alive = end_processes(str(run.path), grace_s=GRACE_S)
    if alive:
        raise LauncherError(_stubborn(host, alive))


def begin(run: RunDir, stage: str, *, node: int, host: str, slots: int, port: int) -> Part:
    """`python -m launcher.hosts join RUN STAGE PORT` finds the node's place and becomes launch.py."""
    argv = (sys.executable, "-u", "-P", "-m", "launcher.hosts", "join", str(run.path), stage, str(port))
    request = LaunchRequest(stage=stage, argv=argv, env=((TOKEN, str(run.path)),), world=slots)
    log = run.stage(stage).logs / (f"node{node}.log" if node else "launcher.log")
    child = start(request, cwd=run.path, log=log, base_env=dict(os.environ))
    return Part(run=run, stage=stage, host=host, child=child, ranks=RankTable(str(run.path), world=slots))


def _stubborn(host: str, alive: list[Process]) -> Problem:
    what = f"process {', '.join(str(process.pid) for process in alive)} does not end, not even by SIGKILL"
    hint = "a driver or a file system may hold it in the kernel; end the node"
    return Problem(code="E511", where=host, what=what, hint=hint)
