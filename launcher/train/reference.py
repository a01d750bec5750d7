"""DPO's reference: nats of every answer under the model that the stage starts from, two more columns of its rows. Collective.

Worked out once by the engine before its first step (an adapter adds nothing yet) and kept in stages/<stage>/reference.npz,
because a resumed stage has that model no more. The file names the inputs it belongs to.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from datasets import Dataset

from launcher.rundir.folder import RunDir, read_json
from launcher.rundir.inputs import stage_inputs
from launcher.rundir.order import StageOrder
from launcher.spec.stages import StageBase
from launcher.train.batches import answered_pairs
from launcher.train.engines import Scoring
from launcher.train.evaluate import score_rows
from launcher.train.ranks import Ranks, barrier, broadcast
from launcher.train.rows import Rows, global_batch, num_steps, step_rows

SIDES = ("chosen", "rejected")


def with_reference(
    run: RunDir,
    order: StageOrder,
    ranks: Ranks,
    engine: Scoring,
    rows: Rows,
    *,
    stage: StageBase,
    seed: int,
    pad: int,
    batch: int,
) -> Rows:
    """The rows with reference_chosen and reference_rejected, in nats. Training rows that no step will use hold NaN."""
    path = run.stage(order.stage).path / "reference.npz"
    inputs = stage_inputs(run, read_json(run.job_json), order)
    kept = broadcast(_read(path, inputs) if ranks.first else None)
    if kept is None:
        score = partial(_nats, engine, pad=pad, batch=batch)
        used = _used(len(rows.train), order, stage, seed)
        train = np.full((2, len(rows.train)), np.nan)
        train[:, used] = score(rows.train.select(used))
        kept = {"train": train, "held_out": score(rows.held_out)}
        if ranks.first:
            _write(path, inputs, kept)
        barrier()
    return replace(rows, train=_added(rows.train, kept["train"]), held_out=_added(rows.held_out, kept["held_out"]))


def _used(num_rows: int, order: StageOrder, stage: StageBase, seed: int) -> list[int]:
    """Row numbers that training will see, in rising order."""
    steps = num_steps(stage, order, num_rows)
    if steps * global_batch(order) >= num_rows:
        return list(range(num_rows))
    return sorted({row for step in range(steps) for row in step_rows(num_rows, order, seed=seed, step=step)})


def _nats(engine: Scoring, rows: Dataset, *, pad: int, batch: int) -> np.ndarray:
    nll, _ = score_rows(engine, rows, partial(answered_pairs, pad=pad, multiple=engine.mesh.sp), batch=batch)
    return -nll


def _added(rows: Dataset, nats: np.ndarray) -> Dataset:
    for side, column in zip(SIDES, nats, strict=True):
        rows = rows.add_column(f"reference_{side}", column.tolist())
    return rows


def _read(path: Path, inputs: str) -> dict[str, np.ndarray] | None:
    """What an earlier start of this stage has kept; None where it kept nothing, or of other inputs."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["inputs"]) == inputs:
                return {name: file[name] for name in ("train", "held_out")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # also what a power cut leaves of it
        pass
    return None


def _write(path: Path, inputs: str, kept: dict[str, np.ndarray]) -> None:
    partial_path = path.with_suffix(".partial.npz")
    np.savez(partial_path, inputs=np.array(inputs), **kept)
    os.replace(partial_path, path)
