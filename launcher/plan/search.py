"""(load, grounds, what is pinned, clock) -> Found: layouts judged by memory and time, the one to take, and why not the rest.

DERIVE, pure. A ground is a choice of degrees; each is tried with every rung of the ladder and every micro-batch, because memory
does not always grow with it: a single pass adds nothing up in fp32, and logits are cut into tiles of equal size. Times are
compared where it fits with 95 %; of those within 2 % of the best the plainest is taken, then the largest micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.plan.cost.fastest import fastest
from launcher.plan.cost.of_stage import Clock
from launcher.plan.cost.step import StepTime
from launcher.plan.ladder import (
    LIKELY,
    SAFE,
    Fit,
    Ground,
    Pinned,
    Rung,
    best_of,
    fit_of,
    fits,
    micros_of,
    rungs_for,
    short_of,
    unsuited,
)
from launcher.plan.layout import Layout
from launcher.plan.load import Load
from launcher.plan.plan import Option, Rejected
from launcher.units import short_seconds_text

Objective = Literal["speed", "cost", "memory"]
ROOM = 1.25  # objective memory: a plan may be slower by this for a lower peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layout that fits, and its time; None: the speed of the device is not known."""

    fit: Fit
    time: StepTime | None
    order: int  # of its rung on the ladder: cheaper ones first

    @property
    def layout(self) -> Layout:
        return self.fit.layout

    @property
    def seconds(self) -> float:
        """Of a step; where no time is known, what keeps the order of the ladder."""
        return self.time.step_s if self.time else 1.0 + 0.1 * self.order

    @property
    def gpu_seconds(self) -> float:
        return self.seconds * self.fit.ground.world

    @property
    def plainness(self) -> tuple[int, int, int]:
        """Fewer degrees, then an earlier rung, then a larger micro-batch."""
        ground = self.fit.ground
        degrees = sum(degree > 1 for degree in (ground.tp, ground.pp, ground.sp))
        return -degrees, -self.order, self.layout.micro_batch

    def text(self) -> str:
        return plan_text(self.fit.ground, self.fit.rung, self.layout.micro_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    chosen: Candidate
    runner_up: Candidate | None  # taken if there were no plan of the chosen one's family: other degrees or another rung
    front: tuple[Option, ...]
    rejected: tuple[Rejected, ...]
    judged: int
    objective: Objective


def plan_text(ground: Ground, rung: Rung, micro: int | None = None) -> str:
    """`tensor 8 x pipeline 4, ZeRO-1, full checkpointing, micro-batch 2`."""
    degrees = {"tensor": ground.tp, "pipeline": ground.pp, "sequence": ground.sp}
    named = " x ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1)
    words = [named] if named else []
    words += [rung.text()] + ([f"micro-batch {micro}"] if micro else [])
    return ", ".join(words)


def search(
    load: Load, grounds: Sequence[Ground], pinned: Pinned, clock: Clock | None, *, objective: Objective = "speed"
) -> Found | None:
    """None: nothing fits, not even by a chance of one in two."""
    judged, rejected = 0, []
    safe: list[Candidate] = []
    tight: list[Candidate] = []
    for ground in grounds:
        micros = micros_of(load, ground, pinned)
        for order, rung in enumerate(rungs_for(pinned)):
            refusal = unsuited(rung, ground, pinned)
            if refusal is not None:
                rejected.append(Rejected(plan=plan_text(ground, rung), code=refusal[0], text=refusal[1]))
                continue
            tried = [fit_of(load, ground, rung, micro, pinned) for micro in micros]
            judged += len(tried)
            fitting = [fit for fit in tried if fits(fit, SAFE)]
            safe += [_timed(fit, clock, order) for fit in fitting]
            if not fitting:
                least = best_of(tried)
                if fits(least, LIKELY):
                    tight.append(_timed(least, clock, order))
                text = plan_text(ground, rung, least.layout.micro_batch)
                rejected.append(Rejected(plan=text, code="E210", text=short_of(least)))
    if not safe:
        return _tight(tight, rejected, judged, objective)
    chosen = _best(safe, objective)
    others = [one for one in safe if _family(one) != _family(chosen)]
    slower = [Rejected(plan=one.text(), code="slower", text=_behind(one, chosen)) for one in _families(others, objective)]
    return Found(
        chosen=chosen,
        runner_up=_best(others, objective) if others else None,
        front=_front(safe),
        rejected=(*slower, *merged(rejected)),
        judged=judged,
        objective=objective,
    )


def _timed(fit: Fit, clock: Clock | None, order: int) -> Candidate:
    return Candidate(fit=fit, time=clock.time(fit.layout, host_ranks=fit.ground.machine.slots) if clock else None, order=order)


def _best(found: Sequence[Candidate], objective: Objective) -> Candidate:
    if objective == "memory":
        quickest = min(one.seconds for one in found)
        near = [one for one in found if one.seconds <= ROOM * quickest]
        return min(near, key=lambda one: (one.fit.memory.peak_bytes, one.seconds))
    if objective == "cost":  # of equal cost the one that is done sooner
        return fastest(found, seconds=lambda one: one.gpu_seconds, merit=lambda one: (one.fit.ground.world, one.plainness))
    return fastest(found, seconds=lambda one: one.seconds, merit=lambda one: one.plainness)


def _family(one: Candidate) -> tuple[object, ...]:
    ground = one.fit.ground
    return ground.world, ground.tp, ground.pp, ground.sp, one.fit.rung


def _families(found: Sequence[Candidate], objective: Objective) -> list[Candidate]:
    """The best of each family, quickest first; the one of the fewest GPU seconds first where those count."""
    groups: dict[tuple[object, ...], list[Candidate]] = {}
    for one in found:
        groups.setdefault(_family(one), []).append(one)
    best = [_best(group, objective) for group in groups.values()]
    return sorted(best, key=lambda one: (one.gpu_seconds if objective == "cost" else one.seconds, one.order))


def _behind(one: Candidate, chosen: Candidate) -> str:
    if one.time is None:
        return "fits too, and costs more"
    more = one.seconds / chosen.seconds - 1
    ranks = f" on {one.fit.ground.world} ranks" if one.fit.ground.world != chosen.fit.ground.world else ""
    share = f"{more:.0%} slower" if more >= 0.005 else f"{-more:.0%} faster" if more <= -0.005 else "as fast"
    return f"{short_seconds_text(one.seconds)} a step{ranks}, {share}"


def _front(found: Sequence[Candidate]) -> tuple[Option, ...]:
    """Those that no other one beats in both time and memory, fastest first. Nothing where no time is known."""
    front: list[Option] = []
    for one in sorted(found, key=lambda one: (one.seconds, one.fit.memory.peak_bytes)):
        if one.time and (not front or one.fit.memory.peak_bytes < front[-1].peak_bytes):
            front.append(_option(one))
    return tuple(front)


def _option(one: Candidate) -> Option:
    memory, world = one.fit.memory, one.fit.ground.world
    return Option(plan=one.text(), world=world, step_s=one.seconds, peak_bytes=memory.peak_bytes, p_fit=memory.p_fit or 0.0)


def _tight(tight: Sequence[Candidate], rejected: Sequence[Rejected], judged: int, objective: Objective) -> Found | None:
    """Where nothing is safe: what fits with the greatest probability."""
    if not tight:
        return None
    chosen = max(tight, key=lambda one: (one.fit.memory.p_fit or 0, one.plainness))
    rest = merged([item for item in rejected if item.plan != chosen.text()])
    return Found(chosen=chosen, runner_up=None, front=(), rejected=rest, judged=judged, objective=objective)


def merged(rejected: Sequence[Rejected]) -> tuple[Rejected, ...]:
    """One entry for each reason: the first plan it holds for, and how many more."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for item in rejected:
        reasons.setdefault((item.code, item.text), []).append(item.plan)
    return tuple(Rejected(plan=_and_more(plans), code=code, text=text) for (code, text), plans in reasons.items())


def _and_more(plans: Sequence[str]) -> str:
    return plans[0] if len(plans) == 1 else f"{plans[0]} and {len(plans) - 1} more"
