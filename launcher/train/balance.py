"""How many blocks each pipeline stage holds: equal in parameters, or in measured time. The same answer on all ranks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from launcher.rundir.order import StageOrder
from launcher.spec.balance import spread
from launcher.train.batches import NO_LOSS
from launcher.train.building import Skeleton, base_of, head_of
from launcher.train.families import family_of
from launcher.train.ranks import broadcast
from launcher.train.scoring import last_scores, token_scores

ROUNDS = 4  # the first warms up, the fastest of the others counts


def stage_blocks(skeleton: Skeleton, order: StageOrder, *, tiles: int) -> tuple[int, ...]:
    """As order.balance asks. Collective."""
    if order.balance == "time":
        return _by_time(skeleton, order, tiles=tiles)
    family = family_of(skeleton.model.config.get_text_config())
    sizes = [_size(block) for block in skeleton.base.get_submodule(family.blocks)]
    before = _size(skeleton.model.get_input_embeddings())
    return spread(sizes, before=before, behind=_size(skeleton.head), parts=order.pp)


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _by_time(skeleton: Skeleton, order: StageOrder, *, tiles: int) -> tuple[int, ...]:
    """Rank 0 times a model of one block; all blocks of a decoder cost the same, the head may cost many."""
    costs = _measure(skeleton, order, tiles=tiles) if torch.distributed.get_rank() == 0 else None
    before, block, behind = broadcast(costs)
    blocks = skeleton.model.config.get_text_config().num_hidden_layers
    return spread([block] * blocks, before=before, behind=behind, parts=order.pp)


def _measure(skeleton: Skeleton, order: StageOrder, *, tiles: int) -> tuple[int, int, int]:
    """Nanoseconds of forward and backward of embedding, one block and head, for the longest micro-batch. Random weights."""
    config = copy.deepcopy(skeleton.model.config)
    config.num_hidden_layers = 1
    kind = AutoModelForSequenceClassification if order.model_kind == "reward" else AutoModelForCausalLM
    kernel = skeleton.model.config._attn_implementation
    model = kind.from_config(config, dtype=skeleton.dtype, attn_implementation=kernel).to(skeleton.mesh.device).train()
    sequences = order.micro_batch * (2 if order.kind in ("reward", "dpo") else 1)
    ids = torch.zeros(sequences, order.max_tokens, dtype=torch.long, device=skeleton.mesh.device)
    targets = ids.clone()
    targets[:, -1] = NO_LOSS
    hidden = torch.randn(*ids.shape, config.hidden_size, dtype=skeleton.dtype, device=skeleton.mesh.device)
    base, head = base_of(model), head_of(model)

    def scores(states: Tensor) -> Tensor:
        if order.model_kind == "reward":
            return last_scores(head, states, torch.full((sequences,), order.max_tokens - 1, device=states.device))
        return token_scores(head, states, targets, tiles=tiles).nll_S

    timed = [
        _fastest(lambda: model.get_input_embeddings()(ids)),
        _fastest(lambda: base(inputs_embeds=hidden.requires_grad_(), use_cache=False).last_hidden_state),
        _fastest(lambda: scores(hidden.detach().requires_grad_())),
    ]
    return timed[0], timed[1], timed[2]


def _fastest(work: Callable[[], Tensor]) -> int:
    seconds = []
    for _ in range(ROUNDS):
        _settle()
        started = time.perf_counter_ns()
        work().float().sum().backward()
        _settle()
        seconds.append(time.perf_counter_ns() - started)
    return min(seconds[1:])


def _settle() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
