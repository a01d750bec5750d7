"""Prepared rows → what a stage trains on, and in which order. The order depends on seed, rows and global batch only:

whatever the ranks, micro-batch and accumulation, step n sees the same rows, and no batch is ever short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from datasets import Dataset, load_from_disk

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir, read_json
from launcher.rundir.order import StageOrder
from launcher.spec.stages import StageBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The tokenised splits of one stage. `held_out` holds at most stage.eval_rows."""

    train: Dataset
    held_out: Dataset
    fingerprint: str


def load_rows(run: RunDir, order: StageOrder, stage: StageBase) -> Rows:
    """What prepare left for this stage, memory-mapped. Both splits must have rows."""
    prepared = read_json(run.stage(order.stage).prepared)
    counts = dict(prepared["rows"])
    empty = [split for split in ("train", "held_out") if not counts[split]]
    if empty:
        raise LauncherError(
            Problem(
                code="E560",
                where=f"stage {order.stage}",
                what=f"no rows in {' and '.join(empty)} after preparation",
                hint="give more data, a longer data.max_tokens, or another data.held_out",
            )
        )
    train, held_out = (load_from_disk(str(run.path / str(prepared[split]))) for split in ("train", "held_out"))
    held_out = held_out.select(range(min(stage.eval_rows, len(held_out))))
    return Rows(train=train, held_out=held_out, fingerprint=str(prepared["fingerprint"]))


def global_batch(order: StageOrder) -> int:
    """Sequences per optimizer step over all replicas."""
    return order.micro_batch * order.grad_accum * order.dp


def num_steps(stage: StageBase, order: StageOrder, num_rows: int) -> int:
    """Optimizer steps: as given, or enough for the epochs (1 where neither is given), rounded up to whole steps."""
    if stage.steps is not None:
        return stage.steps
    return max(1, math.ceil((stage.epochs or 1.0) * num_rows / global_batch(order)))


def step_rows(num_rows: int, order: StageOrder, *, seed: int, step: int) -> list[int]:
    """The row numbers of optimizer step `step`, counted from 0."""
    size = global_batch(order)
    return row_numbers(num_rows, seed=seed, start=step * size, stop=(step + 1) * size)


def row_numbers(num_rows: int, *, seed: int, start: int, stop: int) -> list[int]:
    """Places [start, stop) of an endless order: one permutation of all rows after the other, each drawn from (seed, epoch).

    Epochs follow each other without a gap, so the last step of an epoch is as long as any other.
    """
    return [int(_permutation(num_rows, seed, place // num_rows)[place % num_rows]) for place in range(start, stop)]


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


def unpack(rows: Dataset) -> Dataset:
    """Packed rows taken apart again by their seq_lengths; others as they are. Held-out figures are per row, not per pack."""
    if "seq_lengths" not in rows.column_names:
        return rows
    single: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for row in rows:
        start = 0
        for length in row["seq_lengths"]:
            for column, pieces in single.items():
                pieces.append(row[column][start : start + length])
            start += length
    return Dataset.from_dict(single)
