"""(what fits, what was chosen) -> why each of the others was not taken, by the job's objective. DERIVE, text only."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.plan.candidate import ROOM, Candidate, Objective, families
from launcher.plan.cost.fastest import NEARLY
from launcher.plan.plan import Rejected
from launcher.units import bytes_text, short_seconds_text

TELLABLE = 0.005  # a difference in time that is told


def passed_over(safe: Sequence[Candidate], chosen: Candidate, objective: Objective) -> list[Rejected]:
    """The best of each family but the chosen one's, as the objective orders them."""
    quickest = min(one.seconds for one in safe)
    others = [one for one in safe if one.family != chosen.family]
    return [_passed_over(one, chosen, objective, quickest) for one in families(others, objective)]


def _passed_over(one: Candidate, chosen: Candidate, objective: Objective, quickest: float) -> Rejected:
    if one.time is None:
        return Rejected(plan=one.text(), code="later", text="fits too, and is tried later")
    code, why = _behind(one, chosen, objective, quickest)
    ranks = f" on {one.fit.ground.world} ranks" if one.fit.ground.world != chosen.fit.ground.world else ""
    text = f"{short_seconds_text(one.seconds)} a step{ranks}, {_speed_text(one.seconds / chosen.seconds - 1)}{why}"
    return Rejected(plan=one.text(), code=code, text=text)


def _behind(one: Candidate, chosen: Candidate, objective: Objective, quickest: float) -> tuple[str, str]:
    """A code, and what the speed alone does not say."""
    if objective == "memory":
        if one.seconds > ROOM * quickest:
            return "slower", f"; more than {ROOM - 1:.0%} slower than the fastest"
        larger = one.peak_bytes - chosen.peak_bytes
        return ("larger", f"; {bytes_text(larger)} more memory") if larger else ("tie", "; as much memory")
    if objective == "cost":
        more = one.gpu_seconds / chosen.gpu_seconds - 1
        return (
            ("dearer", f"; {more:.0%} more GPU time")
            if more > NEARLY - 1
            else ("tie", "; no less GPU time, as far as can be told")
        )
    if one.seconds > NEARLY * quickest:
        return "slower", ""
    return "tie", "; not to be told apart, and less plain"


def _speed_text(more: float) -> str:
    return f"{more:.0%} slower" if more >= TELLABLE else f"{-more:.0%} faster" if more <= -TELLABLE else "as fast"


def merged(rejected: Sequence[Rejected]) -> tuple[Rejected, ...]:
    """One entry for each reason: the first plan it holds for, and how many more."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for item in rejected:
        reasons.setdefault((item.code, item.text), []).append(item.plan)
    return tuple(Rejected(plan=_and_more(plans), code=code, text=text) for (code, text), plans in reasons.items())


def _and_more(plans: Sequence[str]) -> str:
    return plans[0] if len(plans) == 1 else f"{plans[0]} and {len(plans) - 1} more"
