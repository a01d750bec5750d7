"""Piece: one parameter of this rank, under the name and shape that it has in the whole Hugging Face model.

The layouts differ in what a rank holds of a weight; checkpoints and artifacts speak of whole weights. Pieces translate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a tensor-parallel rank's tensor is taken from the whole one: `ranges` along `dim`, joined in order."""

    dim: int
    ranges: tuple[tuple[int, int], ...]  # start, stop

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of `whole`, a copy."""
        parts = [whole.narrow(self.dim, start, stop - start) for start, stop in self.ranges]
        return torch.cat(parts, dim=self.dim) if len(parts) > 1 else parts[0].clone(memory_format=torch.contiguous_format)

    def put(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """Write this rank's part into `whole`: the inverse of `of`."""
        start_in_part = 0
        for start, stop in self.ranges:
            whole.narrow(self.dim, start, stop - start).copy_(part.narrow(self.dim, start_in_part, stop - start))
            start_in_part += stop - start

    def shape_of(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Shape of the part of a tensor of shape `whole`."""
        size = sum(stop - start for start, stop in self.ranges)
        return (*whole[: self.dim], size, *whole[self.dim + 1 :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`weight` is this rank's parameter; under ZeRO-3 it is partitioned once more and its own shape is 0."""

    name: str  # Hugging Face name
    weight: torch.nn.Parameter
    shape: tuple[int, ...]  # of the whole weight
    cut: Cut | None  # None: before ZeRO this rank holds the whole weight
    tells: bool  # this copy is the one that is written; False on tp ranks > 0 of a replicated weight, and on a second tied copy

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of this rank's tensor before ZeRO splits it."""
        return self.cut.shape_of(self.shape) if self.cut else self.shape


def whole_pieces(module: torch.nn.Module) -> list[Piece]:
    """Of a model that no tensor or pipeline parallelism has cut: each parameter is a whole weight under its own name."""
    return [
        Piece(name=name, weight=weight, shape=tuple(getattr(weight, "ds_shape", weight.shape)), cut=None, tells=True)
        for name, weight in module.named_parameters()
    ]
