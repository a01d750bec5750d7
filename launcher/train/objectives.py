"""What each supervised stage minimises: scores of sequences → a loss for each row, and the figures beside it. Pure.

The loss of a step is the sum over its rows divided by its weight: target tokens for language, pairs for the others.
S = sequences, R = rows; of a pair's two sequences all chosen come first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from launcher.train.batches import Batch

Sums = dict[str, Tensor]  # per row; "loss" is what is minimised


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """`collate` makes a micro-batch of rows, `losses` turns its scores into sums per row, which carry `names`."""

    names: tuple[str, ...]

    collate: Callable[..., Batch]
    losses: Callable[[Sequence[Tensor], Batch], Sums]


LANGUAGE = ("loss", "token_accuracy")
REWARD = ("loss", "accuracy", "margin", "mean_reward")
PREFERENCE = ("loss", "accuracy", "margin", "chosen_logp", "rejected_logp")


def language_losses(scores: Sequence[Tensor], batch: Batch) -> Sums:
    """Nats and hits of each sequence; divided by the step's target tokens they are the mean loss and token accuracy."""
    nll_S, hits_S = scores
    return {"loss": nll_S, "token_accuracy": hits_S}


def bradley_terry(score_S: Tensor, *, center: float) -> Sums:
    """-log sigmoid(chosen - rejected) of each pair, in nats, plus center x (chosen + rejected)^2 (arXiv 2312.09244)."""
    chosen_R, rejected_R = score_S.chunk(2)
    margin_R = chosen_R - rejected_R
    loss_R = -F.logsigmoid(margin_R) + center * (chosen_R + rejected_R) ** 2
    return {
        "loss": loss_R,
        "accuracy": _wins(margin_R),
        "margin": margin_R,
        "mean_reward": (chosen_R + rejected_R) / 2,
    }


def preference(nll_S: Tensor, reference_S: Tensor, *, beta: float) -> Sums:
    """DPO (arXiv 2305.18290): -log sigmoid of beta x (how far chosen moved from the reference - how far rejected did), nats."""
    chosen_R, rejected_R = (-nll_S).chunk(2)
    reference_chosen_R, reference_rejected_R = reference_S.chunk(2)
    margin_R = beta * ((chosen_R - reference_chosen_R) - (rejected_R - reference_rejected_R))
    return {
        "loss": -F.logsigmoid(margin_R),
        "accuracy": _wins(margin_R),
        "margin": margin_R,
        "chosen_logp": chosen_R,
        "rejected_logp": rejected_R,
    }


def _wins(margin_R: Tensor) -> Tensor:
    return (margin_R > 0).float()
