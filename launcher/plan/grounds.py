"""(spot, rates) -> what its stage puts on the ranks, what is pinned, and the grounds that may be searched. DERIVE, pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from launcher.plan.asked import answer_tokens, batch_of, global_of, is_quantized, max_tokens_of, parallel_of, precision_of
from launcher.plan.cost.rates import Rates
from launcher.plan.degrees import Degrees, legal_degrees
from launcher.plan.ladder import Ground, Pinned
from launcher.plan.legality.rule import Spot
from launcher.plan.load import Load
from launcher.plan.plan import Precision, Rejected
from launcher.plan.shape import ModelShape
from launcher.spec.job import JobSpec
from launcher.spec.stages import Stage


def load_of(job: JobSpec, stage: Stage, shape: ModelShape) -> Load:
    """What the stage puts on a rank, whatever the layout."""
    kind = stage.kind
    return Load(
        shape=shape,
        kind=kind,
        adapter=job.model.adapter,
        quantized=is_quantized(job, kind),
        eager=job.model.attention == "eager",
        row_tokens=max_tokens_of(stage, shape) + answer_tokens(stage),
        answer_tokens=answer_tokens(stage),
        tf32=job.tf32,
    )


def pinned_of(job: JobSpec, stage: Stage) -> Pinned:
    asked = parallel_of(job, stage)
    return Pinned(
        zero=asked.settled_zero,
        checkpointing=asked.checkpointing,
        offload_optimizer=asked.optimizer,
        offload_parameters=asked.parameters,
        micro=batch_of(job, stage).micro_seqs,
        hpz=asked.hpz or 1,
        ratio=asked.ratio or 1.0,
        quantized_weights=asked.quantized_weights,
        quantized_gradients=asked.quantized_gradients,
    )


MOST_WORLDS = 12  # numbers of ranks that are compared: each is a search of its own


def grounds_of(spot: Spot, rates: Rates) -> tuple[list[Ground], list[Rejected]]:
    """Plain data parallelism on all ranks first; and why other degrees of all ranks cannot be."""
    precision = precision_of(spot.job, spot.stage, spot.case.machine)
    grounds: list[Ground] = []
    illegal: list[Rejected] = []
    for world in _worlds(spot, rates):
        fewer = spot if world == spot.case.world else _smaller(spot, world)
        degrees, refused = legal_degrees(fewer)
        illegal += refused if world == spot.case.world else []
        grounds += [_ground(fewer, world, one, precision, rates) for one in degrees]
    return grounds, illegal


def _worlds(spot: Spot, rates: Rates) -> list[int]:
    """All ranks; where the cheapest plan is wanted, also half of the hosts and so on, then half of one, down to one rank."""
    slots, nodes = spot.case.world // spot.case.machine.nodes, spot.case.machine.nodes
    if spot.job.objective != "cost" or not spot.asked.searches or rates.gpu is None:
        return [spot.case.world]
    return list(dict.fromkeys([*(hosts * slots for hosts in _halves(nodes)), *_halves(slots)]))[:MOST_WORLDS]


def _halves(number: int) -> Iterator[int]:
    """The number, its half and so on, as long as they are whole."""
    yield number
    while number % 2 == 0:
        number //= 2
        yield number


def _smaller(spot: Spot, world: int) -> Spot:
    """The same stage on fewer ranks: whole hosts as long as there are such."""
    machine = spot.case.machine
    nodes = max(1, world // machine.slots)
    cluster = spot.job.cluster.model_copy(update={"slots": None})
    job = spot.job.model_copy(update={"cluster": cluster})
    case = replace(spot.case, job=job, machine=replace(machine, nodes=nodes, slots=world // nodes))
    return replace(spot, case=case)


def _ground(spot: Spot, world: int, degrees: Degrees, precision: Precision, rates: Rates) -> Ground:
    tp, pp, sp = degrees
    return Ground(
        machine=spot.case.machine,
        dp=world // (tp * pp * sp),
        tp=tp,
        pp=pp,
        sp=sp,
        precision=precision,
        global_batch=global_of(spot.job, spot.stage),
        memory_scale=rates.scale(precision).memory,
    )
