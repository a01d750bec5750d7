"""Keeps the ranks of one host alive while somebody asks for them, and ends them when nobody does. DO.

It is detached: a broken connection ends nothing, and whoever connects to its socket next is told what was missed. Its lease is
the controller's beat; when none came for as long as it lasts, it ends the ranks, so that a host that nobody reaches is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.backends.fleet_order import with_meeting
from launcher.backends.local import RESERVED
from launcher.backends.request import LaunchRequest
from launcher.backends.shell import Child, Process, ask_to_leave, boot_id, end_processes, start
from launcher.errors import EXIT_DONE
from launcher.hosts.connection.order import Order, order_from
from launcher.hosts.connection.wire import MAX_LINE, MAX_TEXT, BadLine, line, parse
from launcher.hosts.files.disk import CONTROLLER, claim, forget_arrivals, forget_words
from launcher.hosts.files.words import Words, finished_ranks
from launcher.hosts.fleet.room import Room
from launcher.hosts.machine.look import code_sha256
from launcher.hosts.machine.ports import address_towards, free_port
from launcher.hosts.machine.ranks import Death, RankTable
from launcher.rundir.folder import TENDS, RunDir

LOOK_S = 0.2
FIRST_WORD_S = 20.0  # from the keeper's start to its order
GRACE_S = 5.0
KILL_WAIT_S = 5.0
MOST_WORDS = 64  # parts of files that wait for a connection
MOST_UNSEEN = 20_000  # numbered messages that wait for a connection; of more, lines of output are forgotten first


@dataclass(slots=True)
class Keeper:
    """One order, from its arrival to the moment its end was told."""

    room: Room
    order: Order | None = None
    child: Child | None = None
    ranks: RankTable | None = None
    unseen: deque[tuple[int, dict[str, object]]] = field(default_factory=deque)
    told: int = 0  # number of the last message
    code: int | None = None  # the exit code, once everything has ended
    stop_s: float | None = None  # grace, once the end is asked for
    heard_s: float = field(default_factory=time.monotonic)
    more: asyncio.Condition = field(default_factory=asyncio.Condition)
    words: Words | None = None  # None: the controller sees what the ranks write
    _output: int = 0  # bytes of launch.py's output that were told
    _disk: str = CONTROLLER
    forsaken: bool = False  # another attempt waits for this host: nobody will ask how this one ended
    _dead: set[int] = field(default_factory=set)
    _tidying: asyncio.Task[None] | None = None

    async def keep(self) -> int:
        """Serve until the end was seen by the controller, or the lease is over. 0."""
        self.room.socket.unlink(missing_ok=True)  # of a keeper that was killed
        server = await asyncio.start_unix_server(self._connected, self.room.socket, limit=MAX_LINE)
        os.chmod(self.room.socket, 0o600)
        try:
            while not self._dismissed():
                await self._look()
                await asyncio.sleep(LOOK_S)
        finally:
            server.close()
            for path in (self.room.socket, self.room.output):
                path.unlink(missing_ok=True)
        return 0

    def _dismissed(self) -> bool:
        silent_s = time.monotonic() - self.heard_s
        if self.order is None:
            return silent_s > FIRST_WORD_S
        return self.code is not None and (not self.unseen or self.forsaken or silent_s > self.order.lease_s)

    # --- what happens on the host ---

    async def _look(self) -> None:
        if self.order is None or self.code is not None:
            return
        if self.stop_s is None and time.monotonic() - self.heard_s > self.order.lease_s:
            await self._tell("lease.over", seconds=self.order.lease_s)
            self.stop_s = GRACE_S
        if self.child is None:
            if self.stop_s is not None:
                await self._end(0)
            return
        await self._look_at_ranks()
        await self._pass_output_on()
        if sum(message["kind"] == "word" for _, message in self.unseen) < MOST_WORDS:  # the rest waits in its files
            await self._pass_words_on()
        ended = self.child.poll()
        if ended is not None or self.stop_s is not None:
            await self._end(ended)

    async def _look_at_ranks(self) -> None:
        assert self.ranks is not None
        self.ranks.look()
        for rank, death in self.ranks.ended.items():
            if rank not in self._dead:
                self._dead.add(rank)
                await self._tell_death(death)

    async def _tell_death(self, death: Death) -> None:
        await self._tell("death", rank=death.rank, t=death.seen_s, wait_status=death.wait_status)

    async def _explain(self, ended: int) -> None:
        """By launch.py's exit code."""
        assert self.order is not None
        assert self.ranks is not None
        finished = finished_ranks(RunDir(Path(self.order.token)).stage(self.order.stage), self.ranks.ended)
        if (death := self.ranks.explain(ended, finished=finished)) is not None:
            await self._tell_death(death)

    async def _pass_output_on(self) -> None:
        with self.room.output.open("rb") as file:
            file.seek(self._output)
            text = file.read(2**20)
        whole = text[: text.rfind(b"\n") + 1] or (text if len(text) > MAX_TEXT else b"")
        self._output += len(whole)
        for one in whole.splitlines():
            await self._tell("line", text=one[:MAX_TEXT].decode("utf-8", errors="replace"))

    async def _pass_words_on(self) -> None:
        for word in self.words.new() if self.words else ():
            await self._tell("word", **word)

    async def _end(self, ended: int | None) -> None:
        """Nothing of the run is left on this host when the end is told."""
        assert self.order is not None
        grace = GRACE_S if self.stop_s is None else self.stop_s
        token = self.order.token
        left, alive = await asyncio.to_thread(
            end_processes, token, grace_s=grace, kill_wait_s=KILL_WAIT_S, but=_leader(self.order)
        )
        if self.child is not None:
            await self._look_at_ranks()
            if ended is not None:
                await self._explain(ended)
            await self._pass_output_on()
            await self._pass_words_on()
        code = ended if ended is not None else (self.child.poll() if self.child else None)
        self.code = -9 if code is None else code
        pids = [process.pid for process in alive]
        await self._tell("ended", code=self.code, asked=self.stop_s is not None, left=len(left), alive=pids)

    async def _go(self, meeting: Mapping[str, object]) -> None:
        """Start launch.py, once."""
        order = self.order
        if order is None or self.child is not None or self.stop_s is not None:
            return
        argv = with_meeting(order.argv, node=order.node, addr=str(meeting["addr"]), port=int(str(meeting["port"])))
        env = {**order.env, TENDS: "1" if meeting.get("tends") else ""}
        request = LaunchRequest(stage="", argv=argv, env=tuple(sorted(env.items())), world=0)
        if self._disk != CONTROLLER:
            first = order.node * order.slots
            self.words = Words(RunDir(Path(order.token)).stage(order.stage), range(first, first + order.slots))
        base = {name: value for name, value in os.environ.items() if name not in RESERVED}
        try:
            self.child = start(request, cwd=Path(order.cwd), log=self.room.output, base_env=base)
        except OSError as error:
            await self._tell("refused", what=f"{argv[0]}: {error.strerror}")
            self.code = 127
            await self._tell("ended", code=127, asked=False, left=0, alive=[])
            return
        self.ranks = RankTable(order.token, world=order.slots)
        await self._tell("started", pid=self.child.pid)

    async def _tell(self, kind: str, **fields: object) -> None:
        async with self.more:
            self.told += 1
            self.unseen.append((self.told, {"n": self.told, "kind": kind, **fields}))
            if len(self.unseen) > MOST_UNSEEN:
                self.unseen.remove(next((one for one in self.unseen if one[1]["kind"] == "line"), self.unseen[0]))
            self.more.notify_all()

    # --- what the controller says ---

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        teller: asyncio.Task[None] | None = None
        try:
            while text := await reader.readline():
                message = parse(text)
                if "do" in message:
                    if not await self._take(order_from(message), writer):
                        break
                    teller = asyncio.create_task(self._tell_unseen(writer))
                elif teller is not None:
                    await self._obey(message)
                    if "beat" in message:
                        writer.write(line({"kind": "beat"}))
        except (OSError, ValueError, BadLine):
            pass
        finally:
            if teller is not None:
                teller.cancel()
            writer.close()

    async def _take(self, order: Order, writer: asyncio.StreamWriter) -> bool:
        """True where the order is ours from now on. An order of another attempt ends this one: two never run at once.

        One of this attempt for another of its hosts has come to the same machine by a second name, and is refused.
        """
        if self.order is not None and self.order.attempt == order.attempt and self.order.node != order.node:
            writer.write(line({"kind": "same", "attempt": self.order.attempt, "host": self.order.host}))
            await writer.drain()
            return False
        self.heard_s = time.monotonic()
        if self.order is None:
            self.order = order
            if order.seen:
                await self._bury(order)
            else:
                self._tidying = asyncio.create_task(self._tidy(order))
        ours = self.order.attempt == order.attempt
        if not ours:
            self.stop_s = 0.0 if self.stop_s is None else self.stop_s
            self.forsaken = True
        writer.write(line({"kind": "kept" if ours else "other", "attempt": self.order.attempt}))
        await writer.drain()
        return ours

    async def _bury(self, order: Order) -> None:
        """The keeper that began this attempt is gone: what it held is ended, and nothing is started again."""
        self.told, self.stop_s = order.seen, GRACE_S
        await self._tell("keeper.lost")

    async def _tidy(self, order: Order) -> None:
        """End what an earlier attempt left on this host, then say where the ranks could meet here."""
        found, alive = await asyncio.to_thread(
            end_processes, order.token, grace_s=GRACE_S, kill_wait_s=KILL_WAIT_S, but=_leader(order)
        )
        address = address_towards(order.others)
        flaw = await asyncio.to_thread(self._claim, order)
        await self._tell(
            "ready",
            code=await asyncio.to_thread(code_sha256),
            disk=self._disk,
            flaw=flaw,
            left=[process.pid for process in found],
            alive=[process.pid for process in alive],
            addr=address,
            port=free_port(address) if order.node == 0 else None,
            t=time.time(),
        )

    def _claim(self, order: Order) -> str | None:
        """Find out whose disk the run folder is on; why it cannot be used here, or None."""
        run = RunDir(Path(order.token))
        try:
            self._disk = claim(run, order.stage, order.attempt, order.host)
        except OSError as error:
            return f"the run folder cannot be made: {error.filename}: {error.strerror}"
        if self._disk == order.host:
            forget_words(run, order.stage)
            forget_arrivals(run)
        return None

    async def _obey(self, message: Mapping[str, object]) -> None:
        assert self.order is not None
        self.heard_s = time.monotonic()
        seen, stop, go, leave = (message.get(what) for what in ("beat", "stop", "go", "leave"))
        if isinstance(seen, int):
            while self.unseen and self.unseen[0][0] <= seen:
                self.unseen.popleft()
        if isinstance(go, dict):
            await self._go(go)
        if leave and self.child is not None:
            await asyncio.to_thread(ask_to_leave, self.order.token)
        if isinstance(stop, int | float) and self.stop_s is None:
            self.stop_s = max(0.0, float(stop))

    async def _tell_unseen(self, writer: asyncio.StreamWriter) -> None:
        """Everything that the controller has not said it saw, then what comes."""
        sent = 0
        with contextlib.suppress(OSError):
            while True:
                async with self.more:
                    while not (waiting := [one for one in self.unseen if one[0] > sent]):
                        await self.more.wait()
                for sent, message in waiting:  # noqa: B007 - where the next look goes on
                    writer.write(line(message))
                    await writer.drain()


def _leader(order: Order) -> Process | None:
    """Who leads us, where that is a process of this host."""
    leader = order.leader
    return Process(leader.pid, leader.started_ticks) if leader is not None and leader.boot == boot_id() else None


def keep(room: Room) -> int:
    """0. Of two that start at once one finds the lock taken and leaves the run to the other."""
    with room.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return EXIT_DONE
        return asyncio.run(Keeper(room).keep())
