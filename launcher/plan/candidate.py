"""Candidate: a layout that fits, with its time; and the best of some by the job's objective. DERIVE, pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.plan.cost.fastest import fastest
from launcher.plan.cost.step import StepTime
from launcher.plan.ladder import Fit, Ground, Rung
from launcher.plan.layout import Layout

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
    def peak_bytes(self) -> int:
        return self.fit.memory.peak_bytes

    @property
    def plainness(self) -> tuple[bool, int, int, int]:
        """Nothing on the host, then fewer degrees, then an earlier rung, then a larger micro-batch."""
        ground = self.fit.ground
        degrees = sum(degree > 1 for degree in (ground.tp, ground.pp, ground.sp))
        return not self.fit.rung.away, -degrees, -self.order, self.layout.micro_batch

    @property
    def family(self) -> tuple[object, ...]:
        """What a plan is called by, apart from its micro-batch."""
        ground = self.fit.ground
        return ground.world, ground.tp, ground.pp, ground.sp, self.fit.rung

    def text(self) -> str:
        return plan_text(self.fit.ground, self.fit.rung, self.layout.micro_batch)


def plan_text(ground: Ground, rung: Rung, micro: int | None = None) -> str:
    """`tensor 8 x pipeline 4, ZeRO-1, full checkpointing, micro-batch 2`."""
    words = [named] if (named := degrees_text(ground)) else []
    words += [rung.text()] + ([f"micro-batch {micro}"] if micro else [])
    return ", ".join(words)


def degrees_text(ground: Ground) -> str:
    """`tensor 8 x pipeline 4`; empty under plain data parallelism."""
    degrees = {"tensor": ground.tp, "pipeline": ground.pp, "sequence": ground.sp}
    return " x ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1)


def best(found: Sequence[Candidate], objective: Objective) -> Candidate:
    """Of equals the plainest. Not empty."""
    if objective == "memory":
        quickest = min(one.seconds for one in found)
        near = [one for one in found if one.seconds <= ROOM * quickest]
        return min(near, key=lambda one: (one.peak_bytes, one.seconds))
    if objective == "cost":  # of equal cost the one that is done sooner
        return fastest(found, seconds=lambda one: one.gpu_seconds, merit=lambda one: (one.fit.ground.world, one.plainness))
    return fastest(found, seconds=lambda one: one.seconds, merit=lambda one: one.plainness)


def families(found: Sequence[Candidate], objective: Objective) -> list[Candidate]:
    """The best of each, in the order in which the objective would take them."""
    groups: dict[tuple[object, ...], list[Candidate]] = {}
    for one in found:
        groups.setdefault(one.family, []).append(one)
    orders = {
        "speed": lambda one: (one.seconds, one.order),
        "cost": lambda one: (one.gpu_seconds, one.order),
        "memory": lambda one: (one.peak_bytes, one.seconds, one.order),
    }
    return sorted((best(group, objective) for group in groups.values()), key=orders[objective])
