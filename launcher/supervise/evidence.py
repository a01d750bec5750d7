"""What was seen of one attempt -> the problems, the first cause alone where it is known. DERIVE: no clock, no process.

An attempt succeeded when its launcher ended with 0 and every planned rank left a marker that names the planned world. The
exit code alone proves nothing: `deepspeed` exits 0 when its own child was killed by a signal.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.codes import CATALOGUE
from launcher.errors import Problem
from launcher.hosts.machine.ranks import Death, signal_told_by

SEEN_LATE_S = 2.0  # a death is noticed at the watch's next look, a word is dated by the rank itself
FLEET = -1  # where a rank is named: not a rank, but what holds the connections to the hosts
LOST_PEER = "E551"  # a rank's word that another one was gone: an effect, never the cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a rank (or prepare, rank 0) wrote about its own failure."""

    rank: int
    seen_s: float
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """What a rank wrote that was asked to leave, and did so behind a checkpoint."""

    world: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was seen of one attempt to run prepare or a stage."""

    stage: str
    world: int
    exit_code: int  # of the launcher; negative: the signal that killed it
    worlds: Mapping[int, int]  # rank -> world in its success marker
    left: Mapping[int, Leave] = field(default_factory=dict)  # rank -> its word that it has saved and left
    told: tuple[Told, ...] = ()
    deaths: tuple[Death, ...] = ()
    ended_by_us: bool = False  # the watch ended the launcher, so its exit code says nothing
    left_alive: int = 0  # processes of the run found after the launcher had ended
    logs: Mapping[int, str] = field(default_factory=dict)  # rank -> path of its log
    launcher_log: str = ""
    full_disk: str = ""  # the run folder, where its disk takes no more: a rank then cannot even say so
    last_lines: tuple[str, ...] = ()  # end of the log of the rank that is blamed, or of the launcher


def find_problems(evidence: Evidence) -> list[Problem]:
    """Empty for a success."""
    if _succeeded(evidence):
        return []
    cause = _first_cause(evidence)
    if isinstance(cause, Told):
        return [_placed(problem, evidence, cause.rank) for problem in cause.problems]
    if evidence.full_disk and (cause is None or cause.signal_number is None):
        return [_full_disk_problem(evidence)]
    if isinstance(cause, Death):
        return [_death_problem(cause, evidence)]
    return [_world_problem(evidence) or _launcher_problem(evidence)]


def left_after(evidence: Evidence) -> int | None:
    """The step behind which all ranks have left together, its checkpoint written; None where they have not."""
    every_rank = set(evidence.left) == set(range(evidence.world))
    words = set(evidence.left.values())
    if every_rank and len(words) == 1 and _ended_well(evidence):
        [word] = words
        return word.step if word.world == evidence.world else None
    return None


def blamed_rank(evidence: Evidence) -> int | None:
    """The rank whose log tells most; None: the launcher's own."""
    cause = None if _succeeded(evidence) else _first_cause(evidence)
    return cause.rank if cause is not None and cause.rank != FLEET else None


def _succeeded(evidence: Evidence) -> bool:
    every_rank = set(evidence.worlds) == set(range(evidence.world)) and set(evidence.worlds.values()) == {evidence.world}
    return every_rank and _ended_well(evidence)


def _ended_well(evidence: Evidence) -> bool:
    """Of an attempt whose ranks have all left their marker. The launcher may have hung at its exit behind the last one."""
    return (evidence.exit_code == 0 or evidence.ended_by_us) and not evidence.told


def _first_cause(evidence: Evidence) -> Told | Death | None:
    """A rank killed by a signal outranks what the others say of it; among words, the earliest that is not about a peer.

    None blames the launcher: it ended by a signal, or with 0 although ranks are missing (then its child launch.py was
    killed). The ranks' own deaths are effects then: each asks the kernel to die with its parent.
    """
    if evidence.exit_code <= 0 and not evidence.ended_by_us and all(map(_is_effect, evidence.told)):
        return None
    killed = [death for death in evidence.deaths if death.signal_number not in (None, signal.SIGTERM)]
    spoken = [told for told in evidence.told if not _is_effect(told)]
    silent = [death for death in evidence.deaths if death.rank not in {told.rank for told in evidence.told}]
    termed = [death for death in silent if death.signal_number == signal.SIGTERM]  # launch.py ends the others so
    others = [death for death in silent if death not in termed]
    groups: tuple[list[Told | Death], ...] = ([*killed, *spoken], [*others], [*termed], [*evidence.told])
    candidates = next((group for group in groups if group), [])
    return min(candidates, key=lambda cause: cause.seen_s - (SEEN_LATE_S if cause in killed else 0), default=None)


def _is_effect(told: Told) -> bool:
    return all(problem.code == LOST_PEER for problem in told.problems)


def _placed(problem: Problem, evidence: Evidence, rank: int) -> Problem:
    """The problem as the rank told it; where it names no place, the stage and the rank."""
    where = problem.where or _rank_place(evidence, rank)
    return Problem(code=problem.code, where=where, what=problem.what, hint=problem.hint)


def _rank_place(evidence: Evidence, rank: int) -> str:
    return f"stage {evidence.stage}, rank {rank}" if evidence.logs else evidence.stage


def _death_problem(death: Death, evidence: Evidence) -> Problem:
    log = evidence.logs.get(death.rank, evidence.launcher_log)
    number = death.signal_number or _signal_told_by_launcher(death, evidence)
    if number is not None:
        memory = "; the kernel kills so when host memory runs out" if number == signal.SIGKILL else ""
        code, what = "E501", f"killed by {signal_name(number)}{memory}"
    elif death.exit_code is not None:
        code, what = "E502", f"ended with exit code {death.exit_code} and without a word"
    else:
        code, what = "E502", "ended without a success marker"
    return Problem(code=code, where=_rank_place(evidence, death.rank), what=_with_lines(what, evidence), hint=_hint(log))


def _signal_told_by_launcher(death: Death, evidence: Evidence) -> int | None:
    return None if death.wait_status is not None or evidence.ended_by_us else signal_told_by(evidence.exit_code)


def _world_problem(evidence: Evidence) -> Problem | None:
    wrong = sorted(set(evidence.worlds.values()) - {evidence.world})
    if not wrong:
        return None
    what = f"ranks met in a world of {wrong[0]}, the plan is for {evidence.world}"
    return Problem(
        code="E504", where=f"stage {evidence.stage}", what=what, hint="start no ranks of this run by other means; resume"
    )


def _full_disk_problem(evidence: Evidence) -> Problem:
    what = f"the disk is full, and {'stage ' if evidence.logs else ''}{evidence.stage} ended without a word"
    hint = "free space, then resume: what has finished is kept"
    return Problem(code="E513", where=evidence.full_disk, what=what, hint=hint)


def _launcher_problem(evidence: Evidence) -> Problem:
    if not evidence.logs:  # prepare is one process without ranks
        what = f"ended {_ending(evidence.exit_code)} and without a word"
        return Problem(code="E508", where=evidence.stage, what=_with_lines(what, evidence), hint=_prepare_hint(evidence))
    missing = sorted(set(range(evidence.world)) - set(evidence.worlds))
    marks = f"no success marker of rank {', '.join(map(str, missing[:8]))}" if missing else "though every rank left its marker"
    left = f"; {evidence.left_alive} of its processes were still alive and have been ended" if evidence.left_alive else ""
    what = f"the deepspeed launcher ended {_ending(evidence.exit_code)}, {marks}{left}"
    where = f"stage {evidence.stage}"
    return Problem(code="E503", where=where, what=_with_lines(what, evidence), hint=_hint(evidence.launcher_log))


def _ending(exit_code: int) -> str:
    if exit_code < 0:
        return f"by {signal_name(-exit_code)}"
    number = signal_told_by(exit_code)
    return f"with exit code {exit_code}" + (f" (a rank killed by {signal_name(number)})" if number else "")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _with_lines(what: str, evidence: Evidence) -> str:
    return "\n    ".join([what, *evidence.last_lines])


def _hint(log: str) -> str:
    return f"read {log}; `launcher resume` goes on from the last checkpoint"


def _prepare_hint(evidence: Evidence) -> str:
    return f"read {evidence.launcher_log}; `launcher resume` prepares again and keeps what is in the cache"


def problem_from(told: Mapping[str, object]) -> Problem:
    """A problem as a rank wrote it. An unknown code, of another version, becomes E502 and is named in the text."""
    code, what = str(told.get("code", "")), str(told.get("what", ""))
    if code not in CATALOGUE:
        code, what = "E502", f"[{code}] {what}"
    return Problem(code=code, where=str(told.get("where", "")), what=what, hint=str(told.get("hint", "")))
