"""Rows → exact scores of each, gathered in row order, so that ranks, layout and batch size do not matter. Collective.

A trainer's own evaluation is usually a mean over batches, which moves with the batch size and the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from launcher.train.batches import Batch
from launcher.train.engines import Scoring
from launcher.train.ranks import gather

TURNS_AT_ONCE = 64


def score_rows(engine: Scoring, rows: Dataset, collate: Callable[[list[dict]], Batch], *, batch: int) -> list[np.ndarray]:
    """What the engine scores (nats and hits, or a score), each as a (sides, rows) float64 array, the same on every rank.

    Replicas take turns over the rows; one that runs out repeats the last row and throws the result away, to stay in step.
    """
    mesh = engine.mesh
    mine = list(range(mesh.dp_rank, len(rows), mesh.dp))
    turns = -(-len(rows) // (mesh.dp * batch))
    parts = [mine[turn * batch : (turn + 1) * batch] for turn in range(turns)]
    told: list[np.ndarray] = []  # of one turn: (columns, sides, its rows)
    for start in range(0, turns, TURNS_AT_ONCE):  # a pipeline is filled by many turns, memory by all of them
        some = parts[start : start + TURNS_AT_ONCE]
        batches = [collate([rows[index] for index in part or [len(rows) - 1]]) for part in some]
        for part, columns in zip(some, engine.score(batches), strict=False):  # nothing where this rank scores nothing
            sides = [column.double().cpu().numpy().reshape(-1, max(1, len(part)))[:, : len(part)] for column in columns]
            told.append(np.stack(sides))
    everyones = gather((mesh.dp_rank, np.concatenate(told, axis=2)) if mesh.scores else None)
    values = dict(part for part in everyones if part is not None)
    out = np.empty((*values[0].shape[:2], len(rows)))
    for replica, own in values.items():
        out[:, :, replica :: mesh.dp] = own
    return list(out)


def token_figures(nll: np.ndarray, hits: np.ndarray, *, num_tokens: int) -> dict[str, float]:
    """loss in nats per counted token, token_accuracy: sums over all rows divided by all target tokens."""
    return {"loss": float(nll.sum() / num_tokens), "token_accuracy": float(hits.sum() / num_tokens)}


def pair_figures(margins: np.ndarray) -> dict[str, float]:
    """accuracy: share of pairs with margin > 0, a tie counts half, so that chance is 0.5; margin: their mean."""
    return {"accuracy": _accuracy(margins), "margin": float(margins.mean())}


def group_accuracy(margins: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Accuracy per named group, empty names left out."""
    names = np.array(groups)
    return {name: _accuracy(margins[names == name]) for name in sorted(set(groups)) if name}


def _accuracy(margins: np.ndarray) -> float:
    return float((1 + np.sign(margins)).mean() / 2)
