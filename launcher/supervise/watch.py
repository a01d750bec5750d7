"""LaunchRequest -> Evidence: start one request, follow it to its end, leave no process behind.

DO: the watch loop. It decides nothing about success (evidence.py does) and nothing about what comes next (chain.py does).
It ends an attempt early in three cases: it is told to stop, a rank has died or has told its failure while the others hang on,
or every rank has left its marker but the launcher does not end. Ranks that are at their steps are asked to save and leave first
(leaving.py says for how long).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.backends.local import RESERVED
from launcher.backends.request import LaunchRequest
from launcher.backends.shell import Child, Process, ask_to_leave, end_processes, start
from launcher.hosts.machine.capacity import free_disk_bytes
from launcher.hosts.machine.ranks import Death, RankTable
from launcher.rundir.folder import RunDir, read_json
from launcher.supervise.evidence import FLEET, Evidence, Leave, Told, blamed_rank, problem_from
from launcher.supervise.leaving import Demand
from launcher.supervise.stop import StopFlag

POLL_S = 0.2
AFTER_DEATH_S = 3.0  # launch.py looks once a second; the other ranks may still tell what they saw
AFTER_WORD_S = 10.0  # a rank that has told its failure is about to end
AFTER_DONE_S = 30.0
AFTER_LEFT_S = 0.1  # behind ranks of this machine nothing is left but launch.py's next look and its slow exit: seconds
TERM_GRACE_S = 5.0
FULL_BYTES = 64 * 1024  # with less than this free, neither a word of a rank nor its log's end can be counted on
TAIL_LINES, TAIL_BYTES = 8, 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the processes of one request leave their word."""

    log: Path  # outputs of the launcher itself
    markers: dict[int, Path]  # rank -> success marker
    problems: dict[int, Path]  # rank -> failure
    rank_logs: dict[int, Path] = field(default_factory=dict)  # empty for prepare, which has no ranks
    deaths: dict[int, Path] = field(default_factory=dict)  # rank -> how it ended, as its own host saw it
    left: dict[int, Path] = field(default_factory=dict)  # rank -> that it has saved and left, as it was asked to
    listening: Path | None = None  # the ranks' word that they can be asked; None: they never can


def prepare_files(run: RunDir) -> Files:
    folder = run.path / "prepare"
    return Files(log=folder / "log.txt", markers={0: folder / "done.json"}, problems={0: folder / "problems.json"})


def stage_files(run: RunDir, stage: str, world: int) -> Files:
    folder = run.stage(stage)
    return Files(
        log=folder.logs / "launcher.log",
        markers={rank: folder.done(rank) for rank in range(world)},
        problems={FLEET: folder.fleet_problem, **{rank: folder.problem(rank) for rank in range(world)}},
        rank_logs={rank: folder.rank_log(rank) for rank in range(world)},
        deaths={rank: folder.death(rank) for rank in range(world)},
        left={rank: folder.left(rank) for rank in range(world)},
        listening=folder.listening,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended: stopped on demand, or to be judged by its evidence."""

    stopped: bool
    unsaved: str  # why the ranks were ended although they might have saved; empty where nobody ended them
    evidence: Evidence
    still_alive: list[Process]  # what survived even SIGKILL


def follow(
    request: LaunchRequest,
    run: RunDir,
    files: Files,
    stop: StopFlag,
    *,
    on_tick: Callable[[float], None] = lambda now_s: None,
    on_leave: Callable[[], None] = lambda: None,
) -> Outcome:
    """Start the request and wait for its end. `on_tick` is called at every look, to show progress; `on_leave` when the ranks
    have been asked to save and leave.
    """
    token = str(run.path)
    ranks = RankTable(token, request.world if files.rank_logs else 0)
    clear_words(files)
    child = start(request, cwd=run.path, log=files.log, base_env=_clean_environment())

    def ask() -> None:
        ask_to_leave(token, leader=child.pid)
        on_leave()

    demand, early = Demand(stop, files.listening, ask), True
    try:
        early = _wait(child, ranks, files, demand, on_tick)
    finally:
        found, alive = end_processes(token, grace_s=0.0 if demand.hard else request.grace_s, hurry=lambda: demand.hard)
        exit_code = _reap(child)
    worlds, left = dict(_read_markers(files, request.world)), dict(_read_left(files))
    deaths = {**dict(_read_deaths(files)), **ranks.ended}
    evidence = Evidence(
        stage=request.stage,
        world=request.world,
        exit_code=exit_code,
        worlds=worlds,
        left=left,
        told=tuple(_read_words(files)),
        deaths=tuple(death for rank, death in deaths.items() if rank not in worlds and rank not in left),
        ended_by_us=early,
        left_alive=0 if early else len(found),
        logs={rank: str(path) for rank, path in files.rank_logs.items()},
        launcher_log=str(files.log),
        full_disk=str(run.path) if free_disk_bytes(run.path) < FULL_BYTES else "",
    )
    return Outcome(stopped=stop.asked, unsaved=demand.unsaved, evidence=_with_last_lines(evidence), still_alive=alive)


def clear_words(files: Files) -> None:
    """Forget markers and failures of earlier attempts: an old marker must never count for this one."""
    words = (*files.markers.values(), *files.problems.values(), *files.deaths.values(), *files.left.values())
    for path in (*words, *([files.listening] if files.listening else [])):
        path.unlink(missing_ok=True)


def _clean_environment() -> dict[str, str]:
    """The caller's environment without what launch.py sets for each rank: an outer job's RANK would be taken for ours."""
    return {name: value for name, value in os.environ.items() if name not in RESERVED}


def _wait(child: Child, ranks: RankTable, files: Files, demand: Demand, on_tick: Callable[[float], None]) -> bool:
    """True where the attempt has to be ended, False where the launcher ended by itself."""
    first_seen: dict[str, float] = {}
    while child.poll() is None:
        ranks.look()
        on_tick(time.monotonic())
        if demand.to_end(time.monotonic()) or _overdue(time.monotonic(), first_seen, ranks, files):
            return True
        demand.wait(POLL_S)
    return False


def _overdue(now_s: float, first_seen: dict[str, float], ranks: RankTable, files: Files) -> bool:
    """True when a sign that the attempt is over has stood for longer than its end should take."""
    done = {rank for rank, path in files.markers.items() if path.exists()}
    left = {rank for rank, path in files.left.items() if path.exists()}
    signs = (
        ("death", bool(set(ranks.ended) - done - left), AFTER_DEATH_S),
        ("word", any(path.exists() for path in files.problems.values()), AFTER_WORD_S),
        ("done", done | left == set(files.markers), AFTER_DONE_S),
        ("left", bool(left) and left == set(ranks.ended) == set(files.markers), AFTER_LEFT_S),
    )
    return any(seen and now_s - first_seen.setdefault(name, now_s) > wait_s for name, seen, wait_s in signs)


def _reap(child: Child, wait_s: float = 5.0) -> int:
    """Exit code of a launcher that has ended or was just killed; -9 where the kernel still holds it."""
    deadline_s = time.monotonic() + wait_s
    while (code := child.poll()) is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return -signal.SIGKILL if code is None else code


def _read_markers(files: Files, world: int) -> Iterator[tuple[int, int]]:
    for rank, path in files.markers.items():
        try:
            seen = read_json(path).get("world", world)  # prepare is one process and names no world
        except (OSError, ValueError):
            continue
        yield rank, seen if isinstance(seen, int) else -1


def _read_left(files: Files) -> Iterator[tuple[int, Leave]]:
    for rank, path in files.left.items():
        try:
            told = read_json(path)
            yield rank, Leave(world=int(str(told["world"])), step=int(str(told["step"])))
        except (OSError, ValueError, KeyError):
            continue


def _read_words(files: Files) -> Iterator[Told]:
    for rank, path in files.problems.items():
        try:
            told = read_json(path)
            problems = told["problems"]
            seen_s = float(str(told["t"]))
        except (OSError, ValueError, KeyError):
            continue
        if isinstance(problems, list) and problems:
            yield Told(rank=rank, seen_s=seen_s, problems=tuple(problem_from(problem) for problem in problems))


def _read_deaths(files: Files) -> Iterator[tuple[int, Death]]:
    for rank, path in files.deaths.items():
        try:
            told = read_json(path)
            status = told["wait_status"]
            death = Death(rank=rank, seen_s=float(str(told["t"])), wait_status=status if isinstance(status, int) else None)
        except (OSError, ValueError, KeyError):
            continue
        yield rank, death


def _with_last_lines(evidence: Evidence) -> Evidence:
    """Add the end of the log that tells most. A rank that died early has none of its own; the launcher's holds it then."""
    rank = blamed_rank(evidence)
    log = evidence.launcher_log if rank is None else evidence.logs.get(rank, evidence.launcher_log)
    return replace(evidence, last_lines=tuple(last_lines(Path(log)) or last_lines(Path(evidence.launcher_log))))


def last_lines(log: Path, num_lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log that hold text, at most 16 KiB of it, without control characters."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = ("".join(char if char.isprintable() else " " for char in line).rstrip() for line in text.splitlines())
    return [line for line in lines if line][-num_lines:]
