"""DPO's reference: nats of every answer under the model that the stage starts from, two more columns of its rows. Collective.

Worked out once by the engine before its first step (an adapter adds nothing yet) and kept in stages/<stage>/reference.npz,
because a resumed stage has that model no more. The file names the inputs it belongs to.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from datasets import Dataset

from launcher.rundir.folder import read_json
from launcher.rundir.inputs import stage_inputs
from launcher.train.engines import Scoring
from launcher.train.evaluate import score_rows
from launcher.train.ranks import barrier, broadcast
from launcher.train.rows import global_batch, num_steps, step_rows
from launcher.train.task import Task

SIDES = ("chosen", "rejected")


def with_reference(task: Task, engine: Scoring) -> Task:
    """The task whose rows carry reference_chosen and reference_rejected, in nats; NaN in training rows that no step uses."""
    rows, path = task.rows, task.folder.path / "reference.npz"
    inputs = stage_inputs(task.run, read_json(task.run.job_json), task.order)
    kept = broadcast(_read(path, inputs) if task.ranks.first else None)
    if kept is None:
        used = _used(task)
        train = np.full((2, len(rows.train)), np.nan)
        train[:, used] = _nats(task, engine, rows.train.select(used))
        kept = {"train": train, "held_out": _nats(task, engine, rows.held_out)}
        if task.ranks.first:
            _write(path, inputs, kept)
        barrier()
    known = replace(rows, train=_added(rows.train, kept["train"]), held_out=_added(rows.held_out, kept["held_out"]))
    return replace(task, rows=known)


def _used(task: Task) -> list[int]:
    """Row numbers that training will see, in rising order."""
    num_rows, order = len(task.rows.train), task.order
    steps = num_steps(task.stage, order, num_rows)
    if steps * global_batch(order) >= num_rows:
        return list(range(num_rows))
    return sorted({row for step in range(steps) for row in step_rows(num_rows, order, seed=task.job.seed, step=step)})


def _nats(task: Task, engine: Scoring, rows: Dataset) -> np.ndarray:
    nll, _ = score_rows(engine, rows, task.collate, batch=task.held_out_micro)
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
