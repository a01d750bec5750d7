"""All hosts of one stage, from one place: connects, waits until all are ready, starts them together, ends them together. DO.

Hosts with disks of their own get what the stage needs before the start, and what they wrote is here before the end is told.

A program of its own beside the controller, as `deepspeed` is on one machine: its exit code and the ranks' markers are judged
alike. What a host's connection does is written to hosts.json and events.jsonl. Killed, it leaves hosts whose lease runs out.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launcher.backends.fleet_order import FleetOrder, read_fleet_order
from launcher.backends.request import TOKEN
from launcher.backends.shell import boot_id, read_stat
from launcher.errors import EXIT_CLUSTER, EXIT_DONE, LauncherError, Problem
from launcher.hosts.connection.link import Link
from launcher.hosts.connection.order import Leader, Order
from launcher.hosts.files.disk import CONTROLLER, claim, claim_path, forget_arrivals
from launcher.hosts.files.words import markers, write_word
from launcher.hosts.fleet.carrying import Carrier
from launcher.hosts.fleet.host import Host, States, say
from launcher.hosts.machine.look import code_sha256
from launcher.rundir.folder import RunDir, write_json
from launcher.rundir.leave import LEAVE

GRACE_S = 5.0
LAST_WORDS_S = 3.0  # from the first failure to the end of the others: they may still tell what they saw
END_S = 20.0  # grace, SIGKILL and the way there; a host that has not told its end by then is left to its lease
READY_S = 120.0
EXIT_S = 30.0  # from the last rank's marker to the end of launch.py
TERMINATED = 128 + signal.SIGTERM


@dataclass(slots=True)
class Fleet:
    """The hosts of one attempt at one stage."""

    run: RunDir
    order: FleetOrder
    hosts: list[Host]
    code: str  # hash of our own sources
    stopping: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    states: States = field(init=False)
    carrier: Carrier = field(init=False)

    def __post_init__(self) -> None:
        self.states = States(self.run, self.order.stage, self.hosts)
        self.carrier = Carrier(self.run, self.order.stage, self.hosts, self.states)

    async def lead(self) -> int:
        """The exit code: 0 where every host's launcher ended with 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(LEAVE, self._ask_to_leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {LEAVE})  # it was started with it blocked, as ranks are
        following = [asyncio.create_task(self._follow(host)) for host in self.hosts]
        try:
            await self._until(lambda: all(host.ready or host.over for host in self.hosts), READY_S)
            self._refuse_unready()
            if self._may_go():
                await self._ship()
            if self._may_go():
                self._go()
                await self._until(lambda: self._settled() or self._all_done())
                if self._all_done():
                    await self._until(self._settled, EXIT_S)
            await self._end()
            await self.carrier.fetch(all_done=self._all_done())
        finally:
            for task in following:
                task.cancel()
            claim_path(self.run, self.order.stage, self.hosts[0].link.order.attempt).unlink(missing_ok=True)
        return self._exit_code()

    def _settled(self) -> bool:
        return all(host.over for host in self.hosts) or any(host.failed for host in self.hosts)

    def _all_done(self) -> bool:
        """Every rank of the hosts with disks of their own has left its marker; they leave it together with the others."""
        others = [host for host in self.hosts if host.disk != CONTROLLER]
        return bool(others) and all(len(host.done) == len(host.ranks) for host in others)

    def _stop(self) -> None:
        self.stopping = True
        self.changed.set()

    def _ask_to_leave(self) -> None:
        """On every host: the ranks save, leave and end, each host by itself, as those do that have finished."""
        for host in self.hosts:
            if not host.over:
                host.link.say({"leave": True})

    async def _until(self, true: Callable[[], bool], wait_s: float | None = None) -> None:
        """Until it is true, the time is over, or the fleet is told to stop."""
        deadline_s = None if wait_s is None else time.monotonic() + wait_s
        while not true() and not self.stopping:
            self.changed.clear()
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), left_s)

    # --- before the start ---

    def _refuse_unready(self) -> None:
        for host in self.hosts:
            alive = host.ready.get("alive") if host.ready else None
            if alive:
                what = f"processes of an earlier attempt do not end there, not even by SIGKILL: {alive}"
                hint = "a driver or a file system may hold them in the kernel; look at them with ps"
                host.problem = Problem(code="E511", where=host.link.host, what=what, hint=hint)
            elif host.ready is None and not host.over and not self.stopping:
                what = f"did not get ready within {READY_S:.0f} s"
                host.problem = Problem(code="E417", where=host.link.host, what=what, hint="see `launcher doctor`")

        for host in self.hosts:
            if host.ready is None or host.over:
                continue
            if flaw := host.ready.get("flaw"):
                hint = "make the folder above it writable there, or choose another one with --runs DIR"
                host.problem = Problem(code="E404", where=host.link.host, what=str(flaw), hint=hint)
            elif host.ready.get("code") != self.code:
                what = "its zerolaunch has other sources than the one here, so that ranks would not run the same code"
                hint = "install the same version in the same place on every host"
                host.problem = Problem(code="E420", where=host.link.host, what=what, hint=hint)

    def _may_go(self) -> bool:
        return not self.stopping and not any(host.over for host in self.hosts)

    def _go(self) -> None:
        """The ranks meet at the first host, on a port that it found free."""
        first = self.hosts[0].ready
        assert first is not None
        say(f"ranks meet at {first['addr']}:{first['port']} of {self.hosts[0].link.host}")
        away = self.carrier.note_disks()
        for host in self.hosts:
            tends = host.ranks[0] == away.disks[host.disk][0] != 0
            host.link.say({"go": {"addr": first["addr"], "port": first["port"], "tends": tends}})

    async def _ship(self) -> None:
        """What the stage needs, to every disk but ours; given up where the fleet is told to stop."""
        shipping = asyncio.create_task(self.carrier.ship())
        shipping.add_done_callback(lambda task: self.changed.set())
        await self._until(shipping.done)
        if shipping.done():
            shipping.result()
        shipping.cancel()

    # --- at the end ---

    async def _end(self) -> None:
        """Every host is told to end, and has told that it did, or is lost."""
        if all(host.over for host in self.hosts):
            return
        if not self.stopping:
            await self._until(lambda: all(host.over for host in self.hosts), LAST_WORDS_S)
        for host in self.hosts:
            if not host.over:
                host.link.say({"stop": GRACE_S})
        deadline_s = time.monotonic() + END_S
        while not all(host.over for host in self.hosts) and time.monotonic() < deadline_s:
            self.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), 0.5)

    def _exit_code(self) -> int:
        for host in self.hosts:
            if host.silence and not host.over:
                what = f"was lost: {host.silence}"
                hint = "its ranks end by themselves when its lease is over; when it is back, resume"
                host.problem = Problem(code="E417", where=host.link.host, what=what, hint=hint)
        problems = [host.problem for host in self.hosts if host.problem is not None]
        if problems:
            told = {"t": time.time(), "problems": [problem.as_dict() for problem in problems]}
            write_json(self.run.stage(self.order.stage).fleet_problem, told)
            return EXIT_CLUSTER
        if self.stopping:
            return TERMINATED
        if self._all_done():
            return EXIT_DONE  # launch.py may have had to be ended
        return next((host.code for host in self.hosts if host.code), EXIT_DONE)

    # --- what the hosts tell ---

    async def _follow(self, host: Host) -> None:
        try:
            async for message in host.link.messages():
                self._take(host, message)
                self.changed.set()
        except LauncherError as error:
            host.problem = error.problems[0]
            self.states.change(host, "lost", what=host.problem.what)
        self.changed.set()

    def _take(self, host: Host, message: Mapping[str, object]) -> None:
        match message["kind"]:
            case "ready":
                host.ready = message
                if left := message.get("left"):
                    say(f"[{host.link.host}] ended processes {left}, which an earlier attempt had left")
                self.states.change(host, "ready", left=message.get("left"))
            case "started":
                self.states.change(host, "running")
            case "line":
                say(f"[{host.link.host}] {message['text']}")
            case "word":
                self._note_word(host, message)
            case "death":
                self._note_death(host, message)
            case "down":
                host.silence = str(message["what"])
                self.states.change(host, "unreachable", what=host.silence)
            case "up":
                host.silence = ""
                self.states.change(host, "running" if host.ready else "connecting")
            case "keeper.lost":
                host.orphaned = True
                self.states.change(host, "keeper lost")
            case "lease.over":
                self.states.change(host, "lease over")
            case "ended":
                host.code = int(str(message["code"]))
                self.states.change(host, "ended", code=host.code)
                if host.orphaned:
                    what = "what keeps the ranks there was killed, or the host was started anew; its ranks have been ended"
                    hint = "see in its kernel's log (dmesg) what ended it, and resume"
                    host.problem = Problem(code="E417", where=host.link.host, what=what, hint=hint)
                if alive := message.get("alive"):
                    what = f"process {', '.join(map(str, alive))} does not end, not even by SIGKILL"  # type: ignore[call-overload]
                    host.problem = Problem(code="E511", where=host.link.host, what=what, hint="look at it with ps")

    def _note_word(self, host: Host, word: Mapping[str, object]) -> None:
        """A marker waits until what it stands for is here."""
        stage = self.run.stage(self.order.stage)
        if stage.path / str(word["file"]) in [path for rank in host.ranks for path in markers(stage, rank)]:
            host.done[str(word["file"])] = str(word["text"])
            return
        with suppress(OSError):  # a full disk does not end the ranks
            write_word(stage, host.ranks, word)

    def _note_death(self, host: Host, message: Mapping[str, object]) -> None:
        rank = int(str(message["rank"]))
        told = {"t": message["t"], "wait_status": message["wait_status"], "host": host.link.host}
        write_json(self.run.stage(self.order.stage).death(rank), told)


def lead(path: Path, stage: str) -> int:
    run = RunDir(path)
    order = read_fleet_order(run, stage)
    hidden = {name: os.environ[name] for name in order.secrets if name in os.environ}
    attempt, stat = secrets.token_hex(8), read_stat(os.getpid())
    leader = Leader(pid=os.getpid(), started_ticks=stat.started_ticks, boot=boot_id()) if stat else None
    claim(run, stage, attempt, CONTROLLER)
    forget_arrivals(run)
    hosts = [
        Host(
            Link(
                argv=agent,
                order=Order(
                    token=str(path),
                    attempt=attempt,
                    host=name,
                    stage=stage,
                    node=node,
                    slots=order.slots,
                    argv=order.argv,
                    env={**order.env, **hidden, TOKEN: str(path)},
                    cwd=str(path),
                    leader=leader,
                    others=tuple(other for other in order.hosts if other != name),
                ),
            )
        )
        for node, (name, agent) in enumerate(zip(order.hosts, order.agents, strict=True))
    ]
    return asyncio.run(Fleet(run=run, order=order, hosts=hosts, code=code_sha256()).lead())
