"""A stage that does not fit -> the least it needs, and the smallest change of the job that would make it fit. DERIVE, pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from launcher.plan.ladder import UNPINNED, Ground, Pinned, best_micro, first_fit, host_fits, rungs_for, unsuited
from launcher.plan.load import Load
from launcher.plan.plan import Memory
from launcher.spec.model import Lora

_TOKEN_STEP = 64
_MOST_RANKS = 1024


def smallest_change(load: Load, ground: Ground, pinned: Pinned) -> tuple[Memory, str]:
    """The memory of the leanest plan that is allowed, and one sentence with the first change that works."""
    change = next(_changes(load, ground, pinned), "use a smaller model or a device with more memory")
    return _leanest(load, ground, pinned), change


def _leanest(load: Load, ground: Ground, pinned: Pinned) -> Memory:
    allowed = rungs_for(pinned)
    rungs = [rung for rung in allowed if unsuited(rung, ground, pinned) is None] or allowed
    lean = pinned if pinned.micro else replace(pinned, micro=1)
    tried = [best_micro(load, ground, rung, lean) for rung in rungs]
    on_host = [fit for fit in tried if host_fits(fit)]
    return min((fit.memory for fit in on_host or tried), key=lambda memory: memory.peak_bytes)


def _changes(load: Load, ground: Ground, pinned: Pinned) -> Iterator[str]:
    """From the change that costs the user least to the one that costs most; only changes that were tried and fit."""
    if pinned.micro and first_fit(load, ground, replace(pinned, micro=None)):
        yield "leave batch.micro out: a smaller micro-batch fits"
    alone = replace(ground, dp=ground.world, tp=1, pp=1, sp=1)
    if (pinned != UNPINNED or alone != ground) and ground.global_batch % alone.dp == 0:
        freed = first_fit(load, alone, UNPINNED)
        if freed:
            yield f"leave parallel and batch.micro out: {freed.rung.text()}, micro-batch {freed.layout.micro_batch} fits"
    on_gpu = load.kind != "ppo" and ground.machine.device == "cuda"
    if on_gpu and first_fit(load, ground, replace(pinned, checkpointing="offload")):
        yield "keep what checkpointing saves in host memory: parallel.checkpointing offload"
    tokens = _tokens_that_fit(load, ground, pinned)
    if tokens:
        yield f"lower data.max_tokens so that a row has at most {tokens} tokens instead of {load.row_tokens}"
    if load.adapter is None and load.kind != "pretrain" and first_fit(replace(load, adapter=Lora()), ground, pinned):
        yield "train an adapter instead of all weights: model.adapter {kind: lora}"
    if (
        load.adapter
        and not load.quantized
        and load.kind in ("sft", "reward", "dpo")
        and first_fit(replace(load, quantized=True), ground, pinned)
    ):
        yield "keep the base in 4 bits under the adapter: model.quantize nf4"
    ranks = _ranks_that_fit(load, ground, pinned)
    if ranks:
        yield f"use {ranks} GPUs of this kind instead of {ground.world}"


def _tokens_that_fit(load: Load, ground: Ground, pinned: Pinned) -> int | None:
    """The longest row, in steps of 64 tokens, that fits; at least a quarter of what was asked, else the change is not small."""
    steps = range(-(-load.row_tokens // (4 * _TOKEN_STEP)), -(-load.row_tokens // _TOKEN_STEP))
    fitting = bisect_left(
        steps, True, key=lambda step: not first_fit(replace(load, row_tokens=step * _TOKEN_STEP), ground, pinned)
    )
    return steps[fitting - 1] * _TOKEN_STEP if fitting else None


def _ranks_that_fit(load: Load, ground: Ground, pinned: Pinned) -> int | None:
    """Doubling the GPUs helps where states are split; processes of one host share its memory, so not on a CPU."""
    if ground.machine.device == "cpu":
        return None
    dp, replica = 2 * ground.dp, ground.world // ground.dp
    while dp * replica <= _MOST_RANKS:
        wider = replace(ground, dp=dp, global_batch=max(1, ground.global_batch // dp) * dp)
        if first_fit(load, wider, pinned):
            return dp * replica
        dp *= 2
    return None
