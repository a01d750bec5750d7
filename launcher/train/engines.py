"""(this rank's module, order, mesh) → a running engine: one optimizer step, or scores without a gradient. DO, collective.

Two kinds, one face: DeepSpeedEngine, called micro-batch by micro-batch, and PipelineEngine, which calls itself. Both report the
same figures: sums over all rows of the step, told by one rank of each replica.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.errors import LauncherError, Problem
from launcher.rundir.order import StageOrder
from launcher.train.batches import Batch
from launcher.train.leaving import asked_to_leave
from launcher.train.mesh import Mesh
from launcher.train.objectives import Objective, Sums
from launcher.train.optimizer import set_rate
from launcher.train.pieces import Piece
from launcher.train.scoring import last_scores, token_scores

Scores = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """One optimizer step that was taken; the same on all ranks."""

    figures: dict[str, float]
    leave: bool  # some rank was asked to leave


class Scoring(Protocol):
    """Anything that scores micro-batches: an engine, or a whole model that is only looked at."""

    mesh: Mesh

    def score(self, batches: Sequence[Batch]) -> list[Scores]: ...


class Engine(Scoring, Protocol):
    """What the loop needs. `raw` is DeepSpeed's engine."""

    raw: Any
    pieces: list[Piece]

    def step(self, batches: Sequence[Batch], *, lr: float) -> Stepped: ...

    def settle(self) -> None: ...


class WholeModel:
    """A model that every rank holds whole and nobody trains."""

    def __init__(self, scorer: nn.Module, mesh: Mesh):
        self.scorer, self.mesh = scorer.eval(), mesh

    def score(self, batches: Sequence[Batch]) -> list[Scores]:
        with torch.no_grad():
            return [self.scorer(*batch.on(self.mesh).inputs()) for batch in batches]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighing:
    """How a step's sums become its mean: the total over all replicas, and what DeepSpeed's own divisions leave to multiply."""

    total: int
    factor: float


def weigh(batches: Sequence[Batch], order: StageOrder, mesh: Mesh) -> Weighing:
    """Collective. E567 where two ranks of a replica hold different rows: DeepSpeed compares them in the first step only."""
    digest = 0
    for batch in batches:
        digest = zlib.crc32(batch.digest().to_bytes(4, "little"), digest)
    mine = torch.tensor([mesh.dp_rank, sum(batch.weight for batch in batches), digest], dtype=torch.int64, device=mesh.device)
    told = [torch.empty_like(mine) for _ in range(order.world)]
    dist.all_gather(told, mine)
    replicas: dict[int, tuple[int, int]] = {}
    for rank, (replica, weight, seen) in enumerate(torch.stack(told).tolist()):
        if replicas.setdefault(replica, (weight, seen)) != (weight, seen):
            raise LauncherError(_different_rows(order, rank, replica))
    total = sum(weight for weight, _ in replicas.values())
    # DeepSpeed averages over micro-batches and replicas. Under sequence parallelism it adds up the shards' gradients below
    # ZeRO-3 and averages them under it (docs/deepspeed-traps.md).
    shards = mesh.sp if order.zero == 3 else 1
    return Weighing(total=max(1, total), factor=len(batches) * mesh.dp * shards / max(1, total))


def _different_rows(order: StageOrder, rank: int, replica: int) -> Problem:
    return Problem(
        code="E567",
        where=f"stage {order.stage}",
        what=f"rank {rank} works on other rows than the ranks it shares replica {replica} with",
        hint="the ranks read different data: check that all hosts see the same run folder and cache",
    )


def stepped(sums: Sequence[Sums], names: Sequence[str], weighing: Weighing, mesh: Mesh, *, grad_norm: float) -> Stepped:
    """Means over the whole step of the named sums, on all ranks. One collective, one wait for the device.

    Whether anybody was asked to leave is one number more in it: so all ranks know, and leave behind the same step.
    """
    totals = torch.zeros(len(names) + 1, dtype=torch.float64, device=mesh.device)
    if mesh.scores:
        for each in sums:
            totals[:-1] += torch.stack([each[name].double().sum() for name in names])
    if asked_to_leave():
        totals[-1] = 1.0
    dist.all_reduce(totals)
    *means, leave = (totals / weighing.total).tolist()
    return Stepped(figures={**dict(zip(names, means, strict=True)), "grad_norm": grad_norm}, leave=leave > 0)


class PlainEngine:
    """Data, tensor or sequence parallelism, any ZeRO stage."""

    def __init__(self, raw: Any, order: StageOrder, mesh: Mesh, pieces: list[Piece], objective: Objective):
        self.raw, self.order, self.mesh, self.pieces, self.objective = raw, order, mesh, pieces, objective

    def step(self, batches: Sequence[Batch], *, lr: float) -> Stepped:
        """One optimizer step; the means of the step and the gradient norm before clipping."""
        weighing = weigh(batches, self.order, self.mesh)
        set_rate(self.raw, lr)
        told: list[Sums] = []
        norm = 0.0
        for index, batch in enumerate(batches):
            batch = batch.on(self.mesh)
            sums = self.objective.losses(self.raw(*batch.inputs()), batch)
            self.raw.backward(sums["loss"].sum() * weighing.factor)
            told.append({name: values.detach() for name, values in sums.items()})
            if self.order.zero == 0 and index == len(batches) - 1:
                norm = gradient_norm(self.pieces, self.mesh)  # DeepSpeed tells none at ZeRO 0
            self.raw.step()
        norm = norm if self.order.zero == 0 else _told_norm(self.raw)
        return stepped(told, self.objective.names, weighing, self.mesh, grad_norm=norm)

    def score(self, batches: Sequence[Batch]) -> list[Scores]:
        """Scores of each micro-batch, without gradient and without dropout."""
        was_training = self.raw.training
        self.raw.eval()
        with torch.no_grad():
            scores = [self.raw(*batch.on(self.mesh).inputs()) for batch in batches]
        self.raw.train(was_training)
        return scores

    def settle(self) -> None:
        """Give back what ZeRO-3 has gathered ahead for a next pass that does not come: weights can be read after it."""
        self.raw.empty_partition_cache()


def _told_norm(raw: Any) -> float:
    """Of the step just taken, before clipping, over all ranks."""
    return float(raw.get_global_grad_norm())


def gradient_norm(pieces: Sequence[Piece], mesh: Mesh) -> float:
    """Global L2 norm of unpartitioned gradients: a split weight counts on every tensor rank, a whole one once."""
    counted = [piece.weight.grad for piece in pieces if piece.weight.grad is not None and (piece.cut or mesh.tp_rank == 0)]
    squared = torch.zeros(1, dtype=torch.float64, device=mesh.device)
    for gradient in counted:
        squared += gradient.double().square().sum()
    if mesh.tp_group is not None:
        dist.all_reduce(squared, group=mesh.tp_group)
    return float(squared.sqrt())


class PipeEngine:
    """Pipeline parallelism, alone or with tensor and data parallelism; ZeRO 1."""

    def __init__(self, raw: Any, order: StageOrder, mesh: Mesh, pieces: list[Piece], loss: PipeLoss):
        self.raw, self.order, self.mesh, self.pieces, self.loss = raw, order, mesh, pieces, loss

    def step(self, batches: Sequence[Batch], *, lr: float) -> Stepped:
        weighing = weigh(batches, self.order, self.mesh)
        set_rate(self.raw, lr)
        self.loss.begin(self._needed(batches), weighing.factor)
        self.raw.train_batch(iter(self._items(batches)))
        norm = _told_norm(self.raw)
        return stepped(self.loss.sums, self.loss.objective.names, weighing, self.mesh, grad_norm=norm)

    def score(self, batches: Sequence[Batch]) -> list[Scores]:
        """Scores of each micro-batch in the last stage, an empty list elsewhere."""
        self.loss.begin(self._needed(batches), 0.0)
        self.raw.eval_batch(iter(self._items(batches)), num_micro_batches=len(batches))
        self.raw.train()
        return self.loss.scores

    def settle(self) -> None:
        """Nothing is gathered ahead at ZeRO 1."""

    def _needed(self, batches: Sequence[Batch]) -> list[Batch]:
        """Targets are read in the last stage only."""
        return [batch.on(self.mesh) for batch in batches] if self.mesh.last_stage else []

    def _items(self, batches: Sequence[Batch]) -> list[tuple[Any, Tensor]]:
        """What DeepSpeed carries to the first stage, and labels that nobody reads: see PipeLoss."""
        nothing = torch.zeros(1)
        return [
            ((batch.ids_ST, batch.positions_ST) if batch.positions_ST is not None else batch.ids_ST, nothing)
            for batch in batches
        ]


class PipeLoss:
    """The end of the last stage: `score` is its head, the object itself the loss function. Micro-batches come in their order.

    What belongs to each is kept here and not in DeepSpeed's labels: they would have to be tensors, and reading a number off the
    device waits for it.
    """

    def __init__(self, objective: Objective, *, tiles: int):
        self.objective, self.tiles = objective, tiles
        self.head: nn.Module | None = None  # set when the stage is built
        self._left: Iterator[Batch] = iter(())
        self._batch: Batch | None = None
        self.factor = 0.0
        self.sums: list[Sums] = []
        self.scores: list[Scores] = []

    def begin(self, batches: list[Batch], factor: float) -> None:
        self.factor, self.sums, self.scores = factor, [], []
        self._left = iter(batches)

    def score(self, hidden_STH: Tensor) -> Tensor:
        """(k, S) float32: the k scores of each sequence of the next micro-batch."""
        self._batch = batch = next(self._left)
        assert self.head is not None
        if batch.goal.dim() == 1:
            return last_scores(self.head, hidden_STH, batch.goal).unsqueeze(0)
        return torch.stack(token_scores(self.head, hidden_STH, batch.goal, tiles=self.tiles))

    def __call__(self, scores_kS: Tensor, nothing: Tensor) -> Tensor:
        scores: Scores = scores_kS.unbind()
        if not torch.is_grad_enabled():
            self.scores.append(scores)
            return torch.zeros((), device=scores_kS.device)  # DeepSpeed adds it to the loss of training, a scalar
        assert self._batch is not None
        sums = self.objective.losses(scores, self._batch)
        self.sums.append({name: values.detach() for name, values in sums.items()})
        return sums["loss"].sum() * self.factor
