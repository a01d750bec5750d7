"""(load, grounds, what is pinned, clock) -> Found: layouts judged by memory and time, and the one to take. Or Short: none fits.

DERIVE, pure. A ground is a choice of degrees; each is tried with every rung of the ladder and every micro-batch, because memory
does not always grow with it: a single pass adds nothing up in fp32, and logits are cut into tiles of equal size. Times are
compared where it fits with 95 %; of those within 2 % of the best the plainest is taken, then the largest micro-batch. The last
rungs are tried where nothing else fits as safely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.plan.candidate import Candidate, Objective, best, plan_text
from launcher.plan.cost.of_stage import Clock
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
    fits_device,
    host_bytes,
    last_rungs_for,
    micros_of,
    rungs_for,
    short_of,
    unsuited,
)
from launcher.plan.load import Load
from launcher.plan.plan import Option, Rejected
from launcher.plan.rejected import merged, passed_over

TWIN_S, TWIN_BYTES = 0.005, 0.01  # plans that differ by less in time and in memory are one plan to a reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    chosen: Candidate
    runner_up: Candidate | None  # taken if there were no plan of the chosen one's family, nor any that is as fast and as large
    front: tuple[Option, ...]
    rejected: tuple[Rejected, ...]
    judged: int
    objective: Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """Nothing fits, not even by a chance of one in two: what comes nearest."""

    least: Fit  # the lowest peak
    on_host: Fit | None  # of those that fit on the device the one that asks least of its host; None: none fits there


@dataclass(slots=True, kw_only=True)
class _Judged:
    load: Load
    pinned: Pinned
    clock: Clock | None
    safe: list[Candidate] = field(default_factory=list)
    tight: list[Candidate] = field(default_factory=list)
    short: list[Fit] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    count: int = 0

    def judge(self, grounds: Sequence[Ground], rungs: Sequence[Rung], *, first: int = 0) -> None:
        """`first`: the order of the first of the rungs."""
        for ground in grounds:
            micros = micros_of(self.load, ground, self.pinned)
            for order, rung in enumerate(rungs, start=first):
                refusal = unsuited(rung, ground, self.pinned)
                if refusal is None:
                    self._judge_rung(ground, rung, micros, order)
                else:
                    self.rejected.append(Rejected(plan=plan_text(ground, rung), code=refusal[0], text=refusal[1]))

    def _judge_rung(self, ground: Ground, rung: Rung, micros: Sequence[int], order: int) -> None:
        tried = [fit_of(self.load, ground, rung, micro, self.pinned) for micro in micros]
        self.count += len(tried)
        fitting = [fit for fit in tried if fits(fit, SAFE)]
        self.safe += [self._timed(fit, order) for fit in fitting]
        if fitting:
            return
        least = best_of(tried)
        if fits(least, LIKELY):
            self.tight.append(self._timed(least, order))
        else:
            self.short += tried
        text = plan_text(ground, rung, least.layout.micro_batch)
        self.rejected.append(Rejected(plan=text, code="E210", text=short_of(least)))

    def _timed(self, fit: Fit, order: int) -> Candidate:
        time = self.clock.time(fit.layout, host_ranks=fit.ground.machine.slots) if self.clock else None
        return Candidate(fit=fit, time=time, order=order)


def search(
    load: Load, grounds: Sequence[Ground], pinned: Pinned, clock: Clock | None, *, objective: Objective = "speed"
) -> Found | Short:
    """What to take, or what comes nearest. A plan that fits likely is taken where none fits safely."""
    judged, rungs = _Judged(load=load, pinned=pinned, clock=clock), rungs_for(pinned)
    judged.judge(grounds, rungs)
    if not judged.safe:
        judged.judge(grounds, last_rungs_for(pinned, load, grounds[0].machine), first=len(rungs))
    if judged.safe:
        return _found(judged, objective)
    return _tight(judged, objective) if judged.tight else _short(judged.short)


def fits_anywhere(load: Load, grounds: Sequence[Ground], pinned: Pinned) -> bool:
    """Whether something fits, without looking for the best: the leanest rungs first, the smallest and the largest micro-batch.

    False where neither of the two does: a search may still find one between them.
    """
    return any(_fits_on(load, ground, pinned) for ground in grounds)


def _fits_on(load: Load, ground: Ground, pinned: Pinned) -> bool:
    micros = micros_of(load, ground, pinned)
    rungs = [*rungs_for(pinned), *last_rungs_for(pinned, load, ground.machine)]
    suited = [rung for rung in reversed(rungs) if unsuited(rung, ground, pinned) is None]
    tried = ((rung, micro) for rung in suited for micro in {micros[-1], micros[0]})
    return any(fits(fit_of(load, ground, rung, micro, pinned), LIKELY) for rung, micro in tried)


def _found(judged: _Judged, objective: Objective) -> Found:
    safe = judged.safe
    chosen = best(safe, objective)
    others = [one for one in safe if one.family != chosen.family and not _twins(one, chosen)]
    return Found(
        chosen=chosen,
        runner_up=_runner_up(others, objective) if others else None,
        front=_front(safe),
        rejected=(*passed_over(safe, chosen, objective), *merged(judged.rejected)),
        judged=judged.count,
        objective=objective,
    )


def _twins(one: Candidate, other: Candidate) -> bool:
    """Whether nothing that is told of them differs but a name."""
    near_s = abs(one.seconds / other.seconds - 1) < TWIN_S
    near_bytes = abs(one.peak_bytes / other.peak_bytes - 1) < TWIN_BYTES
    return near_s and near_bytes and one.fit.ground.world == other.fit.ground.world


def _runner_up(others: Sequence[Candidate], objective: Objective) -> Candidate:
    """The best of the best one's family: what a job gets that asks for that family."""
    first = best(others, objective)
    return first if objective == "memory" else best([one for one in others if one.family == first.family], objective)


def _front(found: Sequence[Candidate]) -> tuple[Option, ...]:
    """Those that no other one beats in both time and memory, fastest first. Nothing where no time is known."""
    front: list[Option] = []
    for one in sorted(found, key=lambda one: (one.seconds, one.peak_bytes)):
        if one.time and (not front or one.peak_bytes < front[-1].peak_bytes):
            front.append(_option(one))
    return tuple(front)


def _option(one: Candidate) -> Option:
    memory, world = one.fit.memory, one.fit.ground.world
    return Option(plan=one.text(), world=world, step_s=one.seconds, peak_bytes=memory.peak_bytes, p_fit=memory.p_fit or 0.0)


def _tight(judged: _Judged, objective: Objective) -> Found:
    """What fits with the greatest probability."""
    chosen = max(judged.tight, key=lambda one: (one.fit.memory.p_fit or 0, one.plainness))
    rest = merged([item for item in judged.rejected if item.plan != chosen.text()])
    return Found(chosen=chosen, runner_up=None, front=(), rejected=rest, judged=judged.count, objective=objective)


def _short(tried: Sequence[Fit]) -> Short:
    held = [fit for fit in tried if fits_device(fit, LIKELY)]
    return Short(
        least=min(tried, key=lambda fit: fit.memory.peak_bytes),
        on_host=min(held, key=host_bytes, default=None),
    )
