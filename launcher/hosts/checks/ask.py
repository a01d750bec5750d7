"""Questions to every host at once. DO.

A plan asks each for its facts. `examine` goes on, over the same connections: what time it is there, and whether the hosts reach
each other.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from pydantic import TypeAdapter

from launcher.backends.pipes import Pipe, open_pipe
from launcher.errors import LauncherError, Problem
from launcher.hosts.checks.doors import REACH_S, RESOLVE_S
from launcher.hosts.checks.mesh import knocks
from launcher.hosts.checks.share import Share
from launcher.hosts.connection.failures import problem_of_connection
from launcher.hosts.connection.wire import MAX_LINE, BadLine, line, parse
from launcher.hosts.machine.facts import Clock, Door, Examined, HostFacts, Odd

ANSWER_S = 60.0  # the import of a cold Python on a slow shared folder
QUICK_S = 10.0  # what a Python answers that is there already, on a host with much to do
CLOCK_ASKS = 3
MOST_AT_ONCE = 64  # that connect: each is an ssh client

Agents = Mapping[str, Sequence[str]]  # host -> what starts an agent there and is its stdin and stdout
Step = Callable[["Visit"], Awaitable[None]]
_FACTS, _DOOR, _ODD = TypeAdapter(HostFacts), TypeAdapter(Door), TypeAdapter(tuple[Odd, ...])


class NoAnswer(Exception):
    """What was said instead of an answer."""


@dataclass(slots=True)
class Visit:
    """One host while it is asked."""

    host: str
    pipe: Pipe

    async def ask(self, question: Mapping[str, object], *, wait_s: float) -> dict[str, object]:
        """NoAnswer with what ssh, the host's shell or its Python said last."""
        self.pipe.write(line(question))
        try:
            text = await asyncio.wait_for(self.pipe.read_line(), wait_s)
            if not text:
                raise NoAnswer(await self.pipe.last_words())
            answer = parse(text)
        except TimeoutError:
            raise NoAnswer(f"not responding for {wait_s:.0f} s") from None
        except (OSError, BadLine) as error:
            raise NoAnswer(await self.pipe.last_words() or str(error)) from None
        if answer.get("kind") == "refused":
            raise NoAnswer(str(answer.get("what", "")))
        return answer


class Visits:
    """All hosts while they are asked, each over one connection. What they answer is in `found`."""

    def __init__(self, agents: Agents) -> None:
        self.found = Examined()
        self._agents = agents
        self._open: dict[str, Visit] = {}
        self._gate = asyncio.Semaphore(MOST_AT_ONCE)

    async def __aenter__(self) -> Visits:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(visit.pipe.close() for visit in self._open.values()))

    async def begin(self, step: Step) -> None:
        """Connect to every host and take the first step with it."""

        async def connect(host: str) -> None:
            async with self._gate:
                visit = self._open[host] = Visit(host, await open_pipe(self._agents[host], longest_line=MAX_LINE))
                await step(visit)

        await asyncio.gather(*(self._kept(host, connect(host)) for host in self._agents))

    async def then(self, step: Step) -> None:
        """The next step with every host that has answered so far. It begins when the last of them has."""
        going = [visit for host, visit in self._open.items() if host not in self.found.problems]
        await asyncio.gather(*(self._kept(visit.host, step(visit)) for visit in going))

    async def _kept(self, host: str, work: Awaitable[None]) -> None:
        """What goes wrong with one host is kept as its problem."""
        try:
            await work
        except (NoAnswer, OSError) as error:
            self.found.problems[host] = problem_of_connection(host, str(error))
        except ValueError as error:
            what = f"its zerolaunch is of another version: {str(error).splitlines()[0]}"
            hint = "install the same version on every host"
            self.found.problems[host] = Problem(code="E420", where=host, what=what, hint=hint)


def facts_of_all(agents: Agents, *, folder: Path) -> list[HostFacts]:
    """Facts of every host. LauncherError (E417-E420) with the problem of each that does not answer."""
    found = asyncio.run(_look_at(agents, folder))
    if found.problems:
        raise LauncherError(found.problems[host] for host in agents if host in found.problems)
    return [found.facts[host] for host in agents]


def examine(agents: Agents, *, folder: Path, paths: Sequence[tuple[str, str]], share: Share | None) -> Examined:
    """All that `doctor` asks. `paths`: (path, look.READ or look.WRITE); `share`: the file that shows whether it is shared."""
    return asyncio.run(_examine(agents, folder, paths, share))


async def _look_at(agents: Agents, folder: Path) -> Examined:
    async with Visits(agents) as visits:

        async def look(visit: Visit) -> None:
            visits.found.facts[visit.host] = await _facts(visit, folder, (), None)

        await visits.begin(look)
    return visits.found


async def _examine(agents: Agents, folder: Path, paths: Sequence[tuple[str, str]], share: Share | None) -> Examined:
    numbers = {host: number for number, host in enumerate(agents)}
    async with Visits(agents) as visits:
        found = visits.found

        async def look(visit: Visit) -> None:
            question = share.question(numbers[visit.host]) if share else None
            found.facts[visit.host] = await _facts(visit, folder, paths, question)

        async def listen(visit: Visit) -> None:
            found.clocks[visit.host] = await _clock(visit)
            others = [host for host in found.facts if host != visit.host]
            answer = await visit.ask({"do": "listen", "word": secrets.token_hex(8), "others": others}, wait_s=QUICK_S)
            own = found.facts[visit.host].own_address
            found.doors[visit.host] = _DOOR.validate_python({**answer, "host": visit.host, "own": own})

        async def reach(visit: Visit) -> None:
            question = {"do": "reach", "me": visit.host, "doors": told, "knock": found.knocks[visit.host]}
            answer = await visit.ask(question, wait_s=QUICK_S + REACH_S + RESOLVE_S)
            found.odd[visit.host] = _ODD.validate_python(answer["odd"])

        await visits.begin(look)
        await visits.then(listen)
        found.knocks = knocks([host for host in agents if host in found.doors])
        told = [asdict(door) for door in found.doors.values()]
        await visits.then(reach)
    return found


async def _facts(visit: Visit, folder: Path, paths: Sequence[tuple[str, str]], share: Mapping[str, str] | None) -> HostFacts:
    question = {
        "do": "look",
        "host": visit.host,
        "folder": str(folder),
        "paths": [list(path) for path in paths],
        "share": share,
    }
    return facts_from(await visit.ask(question, wait_s=ANSWER_S))


def facts_from(told: Mapping[str, object]) -> HostFacts:
    """ValueError where a field is missing or of another type: the host has another version."""
    return _FACTS.validate_python(told)


async def _clock(visit: Visit) -> Clock:
    """By the fastest of some ways there and back: what a busy host adds is in its width, not in the figure."""
    found = []
    for _ in range(CLOCK_ASKS):
        sent_s, began_s = time.time(), time.monotonic()
        answer = await visit.ask({"do": "clock"}, wait_s=QUICK_S)
        half_s = (time.monotonic() - began_s) / 2
        found.append(Clock(ahead_s=float(str(answer["t"])) - (sent_s + half_s), within_s=half_s))
    return min(found, key=lambda clock: clock.within_s)
