"""(case, world) → how far a run of ours is from the plain one, and which of its figures are too far.

Largest seen in the full table on 2026-11-24 where it is on record, and what is allowed:

                             seen      allowed
    fp32  loss               6.1e-7    5e-6     held-out figures the same
          gradient norm      3.1e-6    2e-4     relative
          weight             3.0e-5    5e-5     after 4 steps of at most 2e-3
          tensor                       5e-6     root mean square
    bf16  loss               6.2e-4    3e-3     against the fp32 run
          gradient norm      7.8e-3    2e-2     relative
          weight             8.1e-3    1e-2     says little: 4 steps can move a weight by 8e-3
          tensor                       3e-3     mostly norms near 1, stored in bf16
"""

from __future__ import annotations

import itertools
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

from launcher.rundir.folder import RunDir
from launcher.train import assemble
from tests.stages.equal_runs.reference import Curves, train_plainly
from tests.stages.equal_runs.table import GLOBAL_SEQS, Case
from tests.stages.harness import run_ranks
from tests.stages.look import curve, held_out, largest_difference, train
from tests.stages.runs import make_run

HELD_OUT_ROWS = 6
EPS = 1e-6  # with the usual 1e-8 Adam moves elements that have next to no gradient by the noise of rounding
OFFLOADS = {"none": ("none", "none"), "optimizer": ("cpu", "none"), "all": ("cpu", "cpu")}
_ids = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Largest differences. A norm's is relative; `tensor` is the root mean square of the tensor that is farthest off."""

    loss: float
    norm: float
    held_out: float
    weight: float
    tensor: float

    def beyond(self, allowed: Differences) -> set[str]:
        """Names of those that are too large; NaN is."""
        return {name for name in self.__slots__ if not getattr(self, name) <= getattr(allowed, name)}


ALLOWED = {
    "fp32": Differences(loss=5e-6, norm=2e-4, held_out=5e-6, weight=5e-5, tensor=5e-6),
    "bf16": Differences(loss=3e-3, norm=2e-2, held_out=3e-3, weight=1e-2, tensor=3e-3),
}


def case_run(world: Path, case: Case, **changes: object) -> RunDir:
    """A run folder of ours for this case, not trained yet."""
    stage = {"clip": case.clip, "lr": case.lr, "eps": EPS, "eval_rows": HELD_OUT_ROWS} | (
        {"packing": True} if case.packed else {}
    )
    settings = {
        "kind": case.kind,
        "ranks": case.ranks,
        "tp": case.tp,
        "pp": case.pp,
        "sp": case.sp,
        "zero": case.zero,
        "micro": GLOBAL_SEQS // (case.dp * case.accum),
        "accum": case.accum,
        "precision": case.precision,
        "checkpointing": case.checkpointing,
        "offload": OFFLOADS[case.offload],
        "start": world / "models" / case.model,
        "data": case.rows,
        "stage": stage | ({"packing": True} if case.packed else {}),
        "model": {"adapter": {"rank": 4, "alpha": 16}} if case.adapter else {},
    }
    return make_run(world, **(settings | changes))


def train_case(world: Path, case: Case) -> RunDir:
    run = case_run(world, case)
    sgd = mock.patch.object(assemble, "make_optimizer", _sgd) if case.optimizer == "sgd" else nullcontext()
    with sgd:  # the ranks are forked with it
        train(run, case.kind, ranks=case.ranks)
    return run


def _sgd(groups: list[dict], config: dict, *, lr: float, **adam: object) -> torch.optim.Optimizer:
    """Instead of our AdamW."""
    return torch.optim.SGD(groups, lr=lr)


def plain_curves(world: Path, case: Case) -> Curves:
    """What the same training is in one process without any of our engines. The same for every layout: see Case.plain."""
    run = case_run(world, case)
    out = world / "plain" / f"{next(_ids)}-{os.getpid()}"

    def plain() -> Curves:
        return train_plainly(
            world / "models" / case.model,
            world / case.rows,
            run.job_json,
            out,
            global_seqs=GLOBAL_SEQS,
            optimizer=case.optimizer,
        )

    [curves] = run_ranks(plain, world=1)
    return curves


def differences(run: RunDir, case: Case, plain: Curves) -> Differences:
    ours, figures = curve(run, case.kind), held_out(run, case.kind)
    assert len(ours) == len(plain.losses) == len(curve(run, case.kind, "grad_norm"))
    trained = weights_of(run, case)
    norms = zip(curve(run, case.kind, "grad_norm"), plain.norms, strict=True)
    return Differences(
        loss=max(abs(a - b) for a, b in zip(ours, plain.losses, strict=True)),
        norm=max(abs(a - b) / b for a, b in norms),
        held_out=max(abs(figures[name] - value) for name, value in plain.held_out.items()),
        weight=largest_difference(trained, plain.weights),
        tensor=max(float(((trained[name] - weight) ** 2).mean() ** 0.5) for name, weight in plain.weights.items()),
    )


def weights_of(run: RunDir, case: Case) -> dict:
    """What was handed on, as numpy float32: numpy has no bf16."""
    tensors = load_file(run.stage(case.kind).artifact / "model.safetensors")
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}
