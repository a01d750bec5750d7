"""A layout that cannot be -> the nearest degrees that can: what hints name. DERIVE, pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from math import isqrt, log2

from launcher.plan.asked import Asked, batch_of, global_of, is_quantized
from launcher.plan.legality.rule import Spot
from launcher.plan.shape import ModelShape
from launcher.spec.stages import Ppo

DEGREES = ("tensor", "pipeline", "sequence")
MOST = 1024  # ranks of one degree, as a job file may ask for them


def divisors_of(number: int) -> list[int]:
    """The degrees that divide `number` ranks, smallest first."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return [divisor for divisor in sorted({*small, *(number // divisor for divisor in small)}) if divisor <= MOST]


def splits_of(world: int) -> Iterator[tuple[int, int, int]]:
    """(tensor, pipeline, sequence) degrees that divide the ranks; a sequence degree goes with no other."""
    for tp in divisors_of(world):
        for pp in divisors_of(world // tp):
            for sp in divisors_of(world) if tp * pp == 1 else (1,):
                yield tp, pp, sp


def tensor_misfits(shape: ModelShape, tensor: int) -> list[str]:
    """What `tensor` ranks cannot share evenly: `32 attention heads`."""
    counts = {"attention heads": shape.heads, "key/value heads": shape.kv_heads, "columns of the MLP": shape.ffn}
    return [f"{count} {name}" for name, count in counts.items() if count % tensor]


def sequence_fits(shape: ModelShape, sequence: int) -> bool:
    """Ulysses gives each rank whole heads; fewer key/value heads than ranks are copied (ulysses_sp.py:148)."""
    kv_fits = shape.kv_heads % sequence == 0 or sequence % shape.kv_heads == 0
    return shape.heads % sequence == 0 and kv_fits


def degrees_fit(spot: Spot, asked: Asked, *, batch: bool = True) -> bool:
    """Whether these degrees suit the ranks, the model, each other and (`batch`) the rows of a step."""
    dp, rest = divmod(spot.case.world, asked.replica)
    rows, micro = global_of(spot.job, spot.stage), batch_of(spot.job, spot.stage).micro_seqs or 1
    return (
        not rest
        and not tensor_misfits(spot.shape, asked.tensor)
        and asked.pipeline <= spot.shape.layers
        and sequence_fits(spot.shape, asked.sequence)
        and (asked.sequence == 1 or asked.tensor * asked.pipeline == 1)
        and not (batch and rows % (micro * dp))
    )


def searched_degrees_fit(spot: Spot) -> bool:
    """Whether a plan that chooses the degrees has some above 1 that suit the ranks, the model and the rows of a step."""
    if (
        not spot.asked.searches
        or spot.shape.blueprint is not None
        or isinstance(spot.stage, Ppo)
        or is_quantized(spot.job, spot.stage.kind)
    ):
        return False
    splits = splits_of(spot.case.world)
    return any(degrees_fit(spot, replace(spot.asked, tensor=tp, pipeline=pp, sequence=sp)) for tp, pp, sp in splits)


def near_degrees(spot: Spot, name: str, fits: Callable[[int], bool] = lambda degree: True) -> list[int]:
    """The degrees below and above the one that is asked, nearest first, with which the whole layout fits; else only `fits`."""
    wanted: int = getattr(spot.asked, name)
    most = min(MOST, max(spot.case.world, 1))
    possible = [degree for degree in range(1, most + 1) if degree != wanted and fits(degree)]
    whole = [degree for degree in possible if degrees_fit(spot, _with_degree(spot.asked, name, degree))]
    choices = whole or possible or [1]
    below = [degree for degree in choices if degree < wanted][-1:]
    above = [degree for degree in choices if degree > wanted][:1]
    return sorted(below + above, key=lambda degree: (abs(degree - wanted), degree))


def _with_degree(asked: Asked, name: str, degree: int) -> Asked:
    degrees = {other: getattr(asked, other) for other in DEGREES} | {name: degree}
    return replace(asked, tensor=degrees["tensor"], pipeline=degrees["pipeline"], sequence=degrees["sequence"])


def near_layout(spot: Spot) -> Asked | None:
    """The nearest legal degrees; one that is not asked stays 1. The batch may have to follow. None: only data parallelism."""
    asked, world = spot.asked, spot.case.world
    divisors = divisors_of(world)
    choices = [divisors if getattr(asked, name) > 1 else [1] for name in DEGREES]
    layouts = [replace(asked, tensor=tp, pipeline=pp, sequence=sp) for tp, pp, sp in product(*choices)]
    above_1 = [layout for layout in layouts if layout.replica > 1]
    legal = [layout for layout in above_1 if degrees_fit(spot, layout)]
    legal = legal or [layout for layout in above_1 if degrees_fit(spot, layout, batch=False)]
    return min(legal, key=lambda layout: (_distance(layout, asked), degrees_text(layout)), default=None)


def _distance(layout: Asked, asked: Asked) -> float:
    """A degree halved is as far as one doubled; one that is lost altogether is farther."""
    steps = [abs(log2(getattr(layout, name) / getattr(asked, name))) for name in DEGREES]
    lost = sum(getattr(layout, name) == 1 < getattr(asked, name) for name in DEGREES)
    return float(round(sum(steps) + 2 * lost, 6))


def degrees_text(asked: Asked) -> str:
    """`tensor: 2, pipeline: 2`: the degrees above 1, as they are written."""
    return ", ".join(f"{name}: {getattr(asked, name)}" for name in DEGREES if getattr(asked, name) > 1)
