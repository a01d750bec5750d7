"""Held-out rows → exact figures: one value per row, gathered in row order, so that ranks and batch size do not matter.

The trainers' own evaluation is a mean over batches, which moves with the batch size and the number of ranks; this is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset

from launcher.train.ranks import Ranks, gather

# From collated inputs on the device to one number per row, by name. Called equally often on every rank (ZeRO-3 gathers).
Measure = Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]


def measure_rows(
    ranks: Ranks, rows: Dataset, collate: Callable[[Sequence[dict]], dict], measure: Measure, *, batch: int
) -> dict[str, np.ndarray]:
    """Every measured value of every row, float64, in row order, on every rank. Collective; no gradient is kept.

    Ranks take turns over the rows; one that runs out repeats the last row and throws the result away, to stay in step.
    """
    mine = list(range(ranks.rank, len(rows), ranks.world))
    turns = -(-len(rows) // (ranks.world * batch))
    values: dict[str, dict[int, float]] = {}
    with torch.no_grad():
        for turn in range(turns):
            indices = mine[turn * batch : (turn + 1) * batch]
            padded = indices or [len(rows) - 1]
            inputs = {key: _to(value, ranks.device) for key, value in collate([rows[i] for i in padded]).items()}
            for name, column in measure(inputs).items():
                values.setdefault(name, {}).update(zip(indices, column.double().tolist(), strict=False))
    return _in_order(gather(values), len(rows))


def _to(value: object, device: torch.device) -> object:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _in_order(parts: list[dict[str, dict[int, float]]], num_rows: int) -> dict[str, np.ndarray]:
    names = sorted({name for part in parts for name in part})
    columns = {name: np.full(num_rows, np.nan) for name in names}
    for part in parts:
        for name, column in part.items():
            columns[name][list(column)] = list(column.values())
    return columns


def token_figures(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """loss in nats per counted token, token_accuracy: sums over all rows divided by all tokens. Needs nll, tokens, correct."""
    tokens = columns["tokens"].sum()
    return {"loss": columns["nll"].sum() / tokens, "token_accuracy": columns["correct"].sum() / tokens}


def pair_figures(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """accuracy: share of pairs with margin > 0, a tie counts half, so that chance is 0.5; margin: their mean."""
    return {"accuracy": _accuracy(columns["margin"]), "margin": float(columns["margin"].mean())}


def group_accuracy(columns: Mapping[str, np.ndarray], groups: Sequence[str]) -> dict[str, float]:
    """Accuracy per named group, empty names left out."""
    names = np.array(groups)
    return {name: _accuracy(columns["margin"][names == name]) for name in sorted(set(groups)) if name}


def _accuracy(margins: np.ndarray) -> float:
    return float((1 + np.sign(margins)).mean() / 2)
