"""A stage that does not fit -> the smallest change of its job that would make it fit. DERIVE, pure.

Each change is made to the job as a user would make it, judged by the rules of the plan, and searched: what is told works.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace

from launcher.plan.asked import FREE, QUANTIZED_KINDS, batch_of, global_of, max_tokens_of
from launcher.plan.batch import nearest_multiples
from launcher.plan.cost.rates import Rates
from launcher.plan.grounds import grounds_of, load_of, pinned_of
from launcher.plan.legality.rule import Case, Spot, spots_of
from launcher.plan.legality.table import find_illegal
from launcher.plan.search import fits_anywhere
from launcher.spec.model import Lora

_TOKEN_STEP = 64
_MOST_RANKS = 1024
_MOST_SLOTS = 8  # of a host; more GPUs than that are more hosts


def smallest_change(spot: Spot, rates: Rates) -> str:
    """One sentence."""
    return next(_changes(spot, rates), "use a smaller model or a device with more memory")


def _changes(spot: Spot, rates: Rates) -> Iterator[str]:
    """From the change that costs the user least to the one that costs most."""
    job, stage, asked = spot.job, spot.stage, spot.asked
    micro = batch_of(job, stage).micro_seqs
    if micro and _works(_without_micro(spot), rates):
        yield "leave batch.micro out: a smaller micro-batch fits"
    if (micro or asked != FREE) and _works(_without_parallel(_without_micro(spot)), rates):
        yield "leave parallel and batch.micro out: the plan finds a layout that fits"
    if asked.checkpointing in ("none", "full") and _works(_with_parallel(spot, checkpointing="offload"), rates):
        yield "keep what checkpointing saves in host memory: parallel.checkpointing offload"
    tokens = _tokens_that_fit(spot, rates)
    if tokens:
        yield f"use data.max_tokens {tokens} instead of {max_tokens_of(stage, spot.shape)}"
    model = job.model
    if model.adapter is None and stage.kind != "pretrain" and _works(_with_model(spot, adapter=Lora()), rates):
        yield "train an adapter instead of all weights: model.adapter {kind: lora}"
    packs = model.adapter is not None and model.quantize is None and stage.kind in QUANTIZED_KINDS
    if packs and _works(_with_model(spot, quantize="nf4"), rates):
        yield "keep the base in 4 bits under the adapter: model.quantize nf4"
    yield from _more_ranks(spot, rates)


def _works(spot: Spot, rates: Rates) -> bool:
    """Whether no rule stands against the job and some layout of the stage fits."""
    if find_illegal(spot.case):
        return False
    load, pinned = load_of(spot.job, spot.stage, spot.shape), pinned_of(spot.job, spot.stage)
    grounds, _ = grounds_of(spot, rates)
    return fits_anywhere(load, grounds, pinned)


def _tokens_that_fit(spot: Spot, rates: Rates) -> int | None:
    """The longest rows, in steps of 64 tokens, that fit; at least a quarter of what was asked, else the change is not small."""
    asked = max_tokens_of(spot.stage, spot.shape)
    steps: Sequence[int] = range(-(-asked // (4 * _TOKEN_STEP)), -(-asked // _TOKEN_STEP))
    fitting = bisect_left(steps, True, key=lambda step: not _works(_with_tokens(spot, step * _TOKEN_STEP), rates))
    return steps[fitting - 1] * _TOKEN_STEP if fitting else None


def _more_ranks(spot: Spot, rates: Rates) -> Iterator[str]:
    """More GPUs help where states are split; processes of one host share its memory, so not on a CPU."""
    if spot.case.cpu:
        return
    wider, fields = spot, ""
    while (wider := _doubled(wider)).case.world <= _MOST_RANKS:
        cluster, machine = wider.job.cluster, wider.case.machine
        if cluster.gpu is not None and cluster.hostfile is None:
            fields = f": cluster.slots {machine.slots}" + (f", cluster.nodes {machine.nodes}" if machine.nodes > 1 else "")
        for total in _totals(wider):
            if _works(_with_global(wider, total), rates):
                rows = "" if total == global_of(spot.job, spot.stage) else f" and batch.global {total}"
                yield f"use {wider.case.world} GPUs of this kind instead of {spot.case.world}{fields}{rows}"
                return


def _totals(spot: Spot) -> Iterator[int]:
    """The rows of a step as they are, and the nearest that replicas of all ranks can share."""
    total, micro = global_of(spot.job, spot.stage), batch_of(spot.job, spot.stage).micro_seqs or 1
    yield total
    if spot.dp is not None:
        yield from nearest_multiples(total, micro * spot.dp)[:1]


# --- the job, changed ----------------------------------------------------------------------------------------------------


def _again(spot: Spot, case: Case) -> Spot:
    return spots_of(case)[spot.index]


def _with_job(spot: Spot, **fields: object) -> Spot:
    return _again(spot, replace(spot.case, job=spot.job.model_copy(update=fields)))


def _with_stage(spot: Spot, **fields: object) -> Spot:
    stages = list(spot.job.stages)
    stages[spot.index] = spot.stage.model_copy(update=fields)
    return _with_job(spot, stages=tuple(stages))


def _with_model(spot: Spot, **fields: object) -> Spot:
    return _with_job(spot, model=spot.job.model.model_copy(update=fields))


def _with_tokens(spot: Spot, tokens: int) -> Spot:
    return _with_stage(spot, data=spot.stage.data.model_copy(update={"max_tokens": tokens}))


def _with_global(spot: Spot, total: int) -> Spot:
    own = spot.stage.batch
    if own is not None and own.global_seqs is not None:
        return _with_stage(spot, batch=own.model_copy(update={"global_seqs": total}))
    return _with_job(spot, batch=spot.job.batch.model_copy(update={"global_seqs": total}))


def _without_micro(spot: Spot) -> Spot:
    if spot.stage.batch is not None:
        spot = _with_stage(spot, batch=spot.stage.batch.model_copy(update={"micro_seqs": None}))
    return _with_job(spot, batch=spot.job.batch.model_copy(update={"micro_seqs": None}))


def _without_parallel(spot: Spot) -> Spot:
    return _with_job(_with_stage(spot, parallel=None), parallel=None)


def _with_parallel(spot: Spot, **fields: object) -> Spot:
    own, of_job = spot.stage.parallel, spot.job.parallel
    if own is not None:
        return _with_stage(spot, parallel=own.model_copy(update=fields))
    assert of_job is not None  # what is asked stands somewhere
    return _with_job(spot, parallel=of_job.model_copy(update=fields))


def _doubled(spot: Spot) -> Spot:
    """Twice the ranks: more GPUs of a host, where it is only planned for and there are such hosts, else more hosts."""
    job, machine = spot.job, spot.case.machine
    cluster, slots = job.cluster, 2 * machine.slots
    if cluster.gpu is None or cluster.hostfile is not None or machine.nodes > 1 or slots > _MOST_SLOTS:
        return _again(spot, replace(spot.case, machine=replace(machine, nodes=2 * machine.nodes)))
    host_bytes = machine.host_memory_bytes // machine.slots * slots
    wider = replace(machine, slots=slots, host_memory_bytes=host_bytes, devices=tuple(range(slots)), cores=2 * machine.cores)
    job = job.model_copy(update={"cluster": cluster.model_copy(update={"slots": slots})})
    return _again(spot, replace(spot.case, job=job, machine=wider))
