"""Metrics: figures of a stage over its steps → metrics.jsonl and TensorBoard event files. Rank 0 writes, others do nothing."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from launcher.rundir.folder import StageDir, write_atomic


class Metrics:
    """One line a call: {"step", "t", name: number, …}. Held-out figures carry names that start with "held_out/".

    A resumed stage passes the step it goes on from: lines after it are dropped, so that the curve has no step twice.
    """

    def __init__(self, stage_dir: StageDir, *, rank: int, tensorboard: bool, resume_step: int | None = None):
        self._writes = rank == 0
        self._path = stage_dir.metrics
        self._board: SummaryWriter | None = None
        if not self._writes:
            return
        self._rewind(resume_step)
        if resume_step is None:
            shutil.rmtree(stage_dir.tensorboard, ignore_errors=True)
        if tensorboard:
            purge = None if resume_step is None else resume_step + 1
            self._board = SummaryWriter(str(stage_dir.tensorboard), purge_step=purge)

    def _rewind(self, resume_step: int | None) -> None:
        if not self._path.exists():
            return
        kept = [] if resume_step is None else [line for line in read_metrics(self._path) if line["step"] <= resume_step]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append the figures of `step`. A value that is not finite is written as null: JSON has no NaN."""
        if not self._writes:
            return
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "t": round(time.time(), 3), **finite}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def read_metrics(path) -> list[dict]:
    """Every whole line of a metrics.jsonl, in order; a torn last line is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
