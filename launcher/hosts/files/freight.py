"""Files of a run between the controller and hosts with disks of their own: all at once, each over its own connection. DO.

A connection that breaks is made again a few times: what has arrived is whole, and is not carried twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from launcher.backends.pipes import Pipe, open_pipe
from launcher.errors import LauncherError, Problem
from launcher.hosts.connection.failures import problem_of_connection
from launcher.hosts.connection.link import FINAL, Broken
from launcher.hosts.connection.wire import MAX_LINE, BadLine, line, parse
from launcher.hosts.files.cargo import Away, Cargo, plan_fetch
from launcher.hosts.files.disk import CONTROLLER
from launcher.hosts.files.parcels import (
    CHUNK_BYTES,
    Arrivals,
    Parcel,
    Place,
    Strange,
    batches,
    is_same,
    manifests_last,
    name_of,
    parcel,
    parcels_as_list,
    parcels_from,
    run_place,
)
from launcher.rundir.folder import RunDir

ANSWER_S = 300.0  # a disk that flushes a large file; a host that is gone is noticed by ssh, in seconds
PAUSES_S = (1.0, 5.0)

Agents = Mapping[str, Sequence[str]]  # host -> what starts an agent there
Done = TypeVar("Done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What one connection has carried."""

    files: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What came from each host, or the problem in its place; `complete` where nothing is left there that is not here."""

    hosts: Mapping[str, Carried | Problem]
    complete: bool

    @property
    def problems(self) -> list[Problem]:
        return [one for one in self.hosts.values() if isinstance(one, Problem)]


async def ship(agents: Agents, run: RunDir, cargo: Cargo) -> dict[str, Carried | Problem]:
    """Every host has the cargo, and nothing else below its trees. OSError where a file of it cannot be read here."""
    parcels = [parcel(name, cargo.files[name]) for name in manifests_last(cargo.files)]
    return await _at_once(agents, lambda host: _ship(agents[host], host, run, cargo, parcels))


async def fetch(agents: Agents, run: RunDir, stage: str, away: Away) -> Fetched:
    """Bring here what the hosts of an attempt have written, as far as they can be asked."""
    asked = {host: agents[host] for host in away.others if host in agents}
    listed = await _at_once(asked, lambda host: _list(asked[host], host, run, stage, away.attempt))
    offers = {host: offered for host, offered in listed.items() if isinstance(offered, dict)}
    wanted = plan_fetch(away, offers)
    carried = await _at_once(
        {host: asked[host] for host in wanted}, lambda host: _get(asked[host], host, run, stage, wanted[host])
    )
    hosts = carried | {host: problem for host, problem in listed.items() if isinstance(problem, Problem)}
    complete = set(asked) == set(away.others) and not any(isinstance(one, Problem) for one in hosts.values())
    if complete and CONTROLLER not in away.disks and all(offers.values()):
        _remove_others(run, stage, {name for offered in offers.values() for name in offered})
    return Fetched(hosts=hosts, complete=complete)


async def _at_once(agents: Agents, work: Callable[[str], Awaitable[Done]]) -> dict[str, Done | Problem]:
    results = await asyncio.gather(*(_with_patience(host, work) for host in agents))
    return dict(zip(agents, results, strict=True))


async def _with_patience(host: str, work: Callable[[str], Awaitable[Done]]) -> Done | Problem:
    for pause_s in (*PAUSES_S, None):
        try:
            return await work(host)
        except LauncherError as error:
            return error.problems[0]
        except (Broken, BadLine, OSError) as error:
            problem = problem_of_connection(host, str(error))
        if pause_s is None or problem.code in FINAL:
            return problem
        await asyncio.sleep(pause_s)
    raise AssertionError("not reached")


# --- there ---------------------------------------------------------------------------------------------------------


async def _ship(argv: Sequence[str], host: str, run: RunDir, cargo: Cargo, parcels: Sequence[Parcel]) -> Carried:
    root, name = name_of(run)
    sent: list[Parcel] = []
    async with _agent(argv, {"do": "take", "root": root, "run": name, "trees": list(cargo.trees)}) as pipe:
        for some in batches(parcels):
            pipe.write(line({"files": parcels_as_list(some)}))
            lacks = [some[number] for number in _numbers(await _answer(pipe, host), len(some))]
            for one in lacks:
                try:
                    await _send(pipe, cargo.files[one.name], one)
                except OSError:
                    await _answer(pipe, host)  # it has told why it reads no more, or has gone
                    raise
            sent += lacks
        pipe.write(line({"end": True}))
        await _answer(pipe, host)
    return Carried(files=len(sent), num_bytes=sum(one.size for one in sent))


async def _send(pipe: Pipe, path: Path, one: Parcel) -> None:
    left = one.size
    with path.open("rb") as file:
        while left:
            data = await asyncio.to_thread(file.read, min(left, CHUNK_BYTES))
            if not data:
                raise Broken(f"{path} has become shorter")
            pipe.write(data)
            await pipe.drain()
            left -= len(data)


def _numbers(answer: Mapping[str, object], count: int) -> list[int]:
    which = answer.get("which")
    if not isinstance(which, list) or not all(type(number) is int and 0 <= number < count for number in which):
        raise BadLine("which: not a list of numbers")
    return which


# --- and back ------------------------------------------------------------------------------------------------------


async def _list(argv: Sequence[str], host: str, run: RunDir, stage: str, attempt: str) -> dict[str, Parcel]:
    """Name in the stage's folder -> what lies there; empty where the host's disk has seen nothing of the attempt."""
    (root, name), offered = name_of(run), {}
    place = run_place(root, name, stage=stage)
    async with _agent(argv, {"do": "list", "root": root, "run": name, "stage": stage, "attempt": attempt}) as pipe:
        while (answer := await _answer(pipe, host)).get("kind") == "files":
            for one in parcels_from(answer, "files"):
                _refuse_strange(host, place, one.name)
                offered[one.name.removeprefix(f"{place.below[0]}/")] = one
    return offered if answer.get("ours") is True else {}


async def _get(argv: Sequence[str], host: str, run: RunDir, stage: str, wanted: Sequence[Parcel]) -> Carried:
    root, name = name_of(run)
    place = run_place(root, name, stage=stage)
    lacking = {one.name: one for one in wanted if not is_same(place.path(one.name), one)}
    if not lacking:
        return Carried(files=0, num_bytes=0)
    ordered = [lacking[name] for name in manifests_last(lacking)]
    async with _agent(argv, {"do": "give", "root": root, "run": name, "stage": stage}) as pipe:
        with Arrivals(place) as arrivals:
            for some in batches(ordered):
                pipe.write(line({"wants": [one.name for one in some]}))
                for one in some:
                    await _receive(pipe, host, one.name, arrivals)
        pipe.write(line({"end": True}))
    return Carried(files=len(ordered), num_bytes=sum(one.size for one in ordered))


async def _receive(pipe: Pipe, host: str, name: str, arrivals: Arrivals) -> None:
    told = await _answer(pipe, host)
    [one] = parcels_from({"file": [[name, told.get("size"), told.get("mtime_ns")]]}, "file")
    left = one.size
    try:
        with arrivals.open(one) as file:
            while left:
                if not (data := await pipe.read(min(left, CHUNK_BYTES))):
                    raise Broken(await pipe.last_words())
                await asyncio.to_thread(file.write, data)
                left -= len(data)
            await asyncio.to_thread(arrivals.settle, file, one)
    except OSError as error:
        hint = "free space, then resume: what has arrived is kept"
        what = f"cannot be fetched from {host}: {error.strerror}"
        raise LauncherError(Problem(code="E513", where=str(arrivals.place.root / name), what=what, hint=hint)) from None


def _refuse_strange(host: str, place: Place, name: str) -> None:
    try:
        place.path(name)
    except Strange as error:
        hint = "nothing was fetched from it; look at what runs there in the name of launcher"
        raise LauncherError(Problem(code="E420", where=host, what=str(error), hint=hint)) from None


def _remove_others(run: RunDir, stage: str, offered: set[str]) -> None:
    """Checkpoints that every disk has dropped go here too, and files of an older attempt that one of now does not have."""
    folder = run.stage(stage)
    for step in folder.checkpoints.glob("step*"):
        prefix = f"{step.relative_to(folder.path).as_posix()}/"
        if not any(name.startswith(prefix) for name in offered):
            shutil.rmtree(step)
            continue
        for path in step.rglob("*"):
            if path.is_file() and path.relative_to(folder.path).as_posix() not in offered:
                path.unlink()


# --- both ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _agent(argv: Sequence[str], header: Mapping[str, object]) -> AsyncIterator[Pipe]:
    pipe = await open_pipe(argv, longest_line=MAX_LINE)
    try:
        pipe.write(line(header))
        yield pipe
    finally:
        await pipe.close()


async def _answer(pipe: Pipe, host: str) -> dict[str, object]:
    """Broken with what was said last where none comes. LauncherError where the agent refuses."""
    try:
        text = await asyncio.wait_for(pipe.read_line(), ANSWER_S)
    except TimeoutError:
        raise Broken(f"not responding for {ANSWER_S:.0f} s") from None
    if not text:
        raise Broken(await pipe.last_words())
    message = parse(text)
    if message.get("kind") != "refused":
        return message
    full = message.get("code") == "E513"
    hint = "free space there, then resume: what has arrived is kept" if full else "install the same version on every host"
    raise LauncherError(Problem(code="E513" if full else "E420", where=host, what=str(message.get("what", "")), hint=hint))
