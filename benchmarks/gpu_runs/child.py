"""`python -m gpu_runs.child RUN STAGE`: one rank of a stage, through launcher.stages, and measured.json of what it took.

Three names of launcher/train are replaced: weights are drawn on the device instead of read, nothing is handed on, and the loop
is given the engine with a meter around it. Everything else is what `launcher run` starts.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gpu_runs.cases import MEASURED, PARENT
from launcher.rundir.folder import RunDir, write_json
from launcher.stages.__main__ import die_with_parent, leave, train
from launcher.train import building, language
from launcher.train.building import _without_wrappers
from launcher.train.course import Course, run_course
from launcher.train.families import initial_std


class DrawnWeights:
    """Stands for launcher.train.weights.Weights: tensors of a model folder that has none, drawn where they are used."""

    def __init__(self, folder: Path, model: PreTrainedModel):
        self.std, self.device = initial_std(model.config.get_text_config()), _device()
        self.blanks = {_without_wrappers(name): weight for name, weight in model.named_parameters()}

    def __enter__(self) -> DrawnWeights:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def check(self, model: PreTrainedModel, *, new: frozenset[str]) -> None:
        """Every weight is there."""

    def read(self, name: str, cut: object = None) -> torch.Tensor:
        """KeyError for an adapter's: those are new in a real run, too."""
        if ".lora_" in name:
            raise KeyError(name)
        blank = self.blanks[name]
        drawn = torch.empty(blank.shape, dtype=blank.dtype, device=self.device)
        if drawn.dim() > 1:
            return drawn.normal_(0, self.std)
        return drawn.fill_(0.0 if name.endswith("bias") else 1.0)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class Meter:
    """Peaks of memory by phase (start: building and initialising; held_out; steps), and when each step had ended on the device.

    Bytes: `allocated` and `reserved` of torch's allocator; on a CPU `resident` of the process, which only ever grows.
    """

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        self.ends_s: list[float] = []
        self.engine_s: list[float] = []
        self.peaks: dict[str, dict[str, int]] = {}
        self.phase = "start"

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        self.note()
        self.phase = phase
        yield
        if self.cuda:
            torch.cuda.synchronize()
        self.note()

    def note(self) -> None:
        """Keep the peak since the last note, for the phase that is under way."""
        if self.cuda:
            now = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
            torch.cuda.reset_peak_memory_stats()
        else:
            now = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}  # Linux counts KiB
        kept = self.peaks.setdefault(self.phase, now)
        kept.update({name: max(kept[name], size) for name, size in now.items()})


class MeteredEngine:
    """The engine that the loop sees."""

    def __init__(self, engine: Any, meter: Meter):
        self.engine, self.meter = engine, meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, batches: Sequence[Any], *, lr: float) -> dict[str, float]:
        with self.meter.during("steps"):
            began_s = time.monotonic()
            figures = self.engine.step(batches, lr=lr)
        self.meter.ends_s.append(time.monotonic())
        self.meter.engine_s.append(self.meter.ends_s[-1] - began_s)
        return figures

    def score(self, batches: Sequence[Any]) -> list[Any]:
        with self.meter.during("held_out"):
            return self.engine.score(batches)


def measured_course(course: Course, meter: Meter, path: Path) -> None:
    """The real loop. What was seen is written where it fails, too: out of memory is a result."""
    course.engine = MeteredEngine(course.engine, meter)
    try:
        run_course(course)
    finally:
        meter.note()
        write_json(
            path, {"ends_s": meter.ends_s, "engine_s": meter.engine_s, "peaks": meter.peaks, "phase": meter.phase, **facts()}
        )


def facts() -> dict[str, object]:
    names = ("torch", "deepspeed", "transformers", "peft")
    cuda = {"cuda": torch.version.cuda, "device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"versions": {name: version(name) for name in names} | cuda}


def main(argv: list[str]) -> None:
    die_with_parent()
    if os.environ.get(PARENT) not in (None, str(os.getppid())):
        leave(1)
    run, stage = RunDir(Path(argv[0])), argv[1]
    meter, path = Meter(), run.path / MEASURED
    building.Weights = DrawnWeights
    language.run_course = lambda course: measured_course(course, meter, path)
    language.hand_over = lambda course, trained: None
    leave(train(run, stage))


if __name__ == "__main__":
    main(sys.argv[1:])
