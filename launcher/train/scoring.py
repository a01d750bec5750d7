"""Hidden states → what the losses need of each sequence: nats and hits of its tokens, or its score. Collective under tp and sp.

S = sequences of a micro-batch, T = tokens (of this rank's shard under sequence parallelism), H = hidden. Logits are made and
thrown away tile by tile (recomputed in the backward pass), so that the S x T x vocabulary matrix never exists.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from deepspeed.sequence.cross_entropy import vocab_parallel_cross_entropy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from launcher.train.batches import NO_LOSS
from launcher.train.sharding import SumOut, VocabHead

TILE_TOKENS = 4096


class LanguageScores(NamedTuple):
    """Sums over the target tokens of each sequence, float32."""

    nll_S: Tensor  # nats
    hits_S: Tensor  # targets that were the likeliest token


def token_scores(head: nn.Module, hidden_STH: Tensor, targets_ST: Tensor, *, tiles: int, sp_group=None) -> LanguageScores:
    """Of a language head. `tiles` must be the same on all ranks: under ZeRO-3 each tile gathers the head."""
    hidden, targets = hidden_STH.flatten(0, 1), targets_ST.flatten()
    parts = [
        _tile(head, *pair, again=tiles > 1 and torch.is_grad_enabled())
        for pair in zip(hidden.tensor_split(tiles), targets.tensor_split(tiles), strict=True)
    ]
    nll, hits = (torch.cat(columns).view_as(targets_ST).sum(1) for columns in zip(*parts, strict=True))
    return LanguageScores(_over(sp_group, nll), _over(sp_group, hits))


def last_scores(head: nn.Module, hidden_STH: Tensor, ends_S: Tensor, *, sp_group=None) -> Tensor:
    """(S,) float32: the scalar head's output at each sequence's last token, which under sp stands in one rank's shard."""
    rank = dist.get_rank(sp_group) if sp_group is not None else 0
    local_S = ends_S - rank * hidden_STH.shape[1]
    here_S = (local_S >= 0) & (local_S < hidden_STH.shape[1])
    rows = torch.arange(len(ends_S), device=ends_S.device)
    scores_S = head(hidden_STH[rows, local_S.clamp(0, hidden_STH.shape[1] - 1)]).squeeze(-1).float()
    return _over(sp_group, scores_S.masked_fill(~here_S, 0))


def _over(sp_group, values: Tensor) -> Tensor:
    """Sum over the shards of a sequence. Each rank's gradient is that of its own part: their sum is the whole."""
    return values if sp_group is None else SumOut.apply(sp_group, values)


def _tile(head: nn.Module, hidden: Tensor, targets: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
    scores = partial(_vocabulary_scores, head)
    return checkpoint(scores, hidden, targets, use_reentrant=False) if again else scores(hidden, targets)


def _vocabulary_scores(head: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(nats, hits) of each target token; 0 where there is none."""
    logits = head(hidden).float()
    counted = targets != NO_LOSS
    if isinstance(head, VocabHead):
        nll = vocab_parallel_cross_entropy(
            logits,
            targets,
            tp_group=head.group,
            vocab_start_index=head.start,
            vocab_end_index=head.start + logits.shape[-1],
            global_vocab_size=head.vocab,
            ignore_index=NO_LOSS,
            reduction="none",
        )
    else:
        nll = F.cross_entropy(logits, targets, ignore_index=NO_LOSS, reduction="none")
    with torch.no_grad():
        hits = (counted & _is_best(head, logits, targets)).float()
    return nll, hits


def _is_best(head: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
    """Whether no token has a larger logit than the target: the same numbers are compared whatever the tensor degree."""
    local = targets - head.start if isinstance(head, VocabHead) else targets
    here = (local >= 0) & (local < logits.shape[-1])
    own = logits.gather(-1, local.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)).squeeze(-1).masked_fill(~here, -torch.inf)
    best = logits.amax(-1)
    if isinstance(head, VocabHead):
        both = torch.stack([own, best])
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=head.group)
        own, best = both.unbind()
    return own >= best


class Scorer(nn.Module):
    """What deepspeed.initialize takes where there is no pipeline: the model, called for scores instead of logits."""

    def __init__(self, outer: nn.Module, base: nn.Module, head: nn.Module, *, tiles: int, saved=nullcontext, sp_group=None):
        super().__init__()
        self.outer = outer  # registers every weight once; base and head are parts of it
        self._parts, self._tiles, self._saved, self._sp_group = (base, head), tiles, saved, sp_group

    def forward(self, ids_ST: Tensor, goal: Tensor, positions_ST: Tensor | None) -> tuple[Tensor, ...]:
        """`goal`: (S, T) targets → (nll, hits); or (S,) ends → (score,)."""
        base, head = self._parts
        with self._saved():
            hidden_STH = base(input_ids=ids_ST, position_ids=positions_ST, use_cache=False).last_hidden_state
        if goal.dim() == 1:
            return (last_scores(head, hidden_STH, goal, sp_group=self._sp_group),)
        return token_scores(head, hidden_STH, goal, tiles=self._tiles, sp_group=self._sp_group)
