"""Pieces of all ranks → whole weights on rank 0, one after the other. Collective; no rank ever holds two of them. DO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from launcher.train.mesh import Mesh
from launcher.train.pieces import Cut, Piece

Wanted = Callable[[Piece], bool]


def whole_weights(pieces: Sequence[Piece], mesh: Mesh, wanted: Wanted = lambda piece: True) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor on the CPU) of every wanted weight of the model on rank 0, nothing on the others.

    Every rank runs the iterator to its end: under ZeRO-3, tensor and pipeline parallelism each weight takes all its holders.
    """
    rank = dist.get_rank()
    mine = {piece.name: piece for piece in pieces if wanted(piece)}
    like = pieces[0].weight  # all weights share dtype and device
    sends = mesh.dp_rank == 0 and mesh.sp_rank == 0
    told: list[dict[str, tuple[tuple[int, ...], Cut | None]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(told, {name: (piece.shape, piece.cut) for name, piece in mine.items() if sends and piece.tells})
    for name in dict.fromkeys(name for theirs in told for name in theirs):
        holders = {holder: theirs[name] for holder, theirs in enumerate(told) if name in theirs}
        piece = mine.get(name)
        with _gathered(piece):
            whole = _collect(piece, rank, holders, like)
        if whole is not None:
            yield name, whole


def _gathered(piece: Piece | None):
    """Inside, a weight that ZeRO-3 has partitioned is this rank's whole tensor again."""
    partitioned = piece is not None and hasattr(piece.weight, "ds_id")
    return deepspeed.zero.GatheredParameters([piece.weight]) if partitioned else nullcontext()


def _collect(
    piece: Piece | None, rank: int, holders: dict[int, tuple[tuple[int, ...], Cut | None]], like: Tensor
) -> Tensor | None:
    """The whole tensor on rank 0, put together from what each holder has; None elsewhere."""
    if rank in holders and rank != 0:
        assert piece is not None
        dist.send(piece.weight.detach().contiguous(), dst=0)
    if rank != 0:
        return None
    whole: Tensor | None = None
    for holder, (shape, cut) in holders.items():
        part = _part(piece, holder, shape, cut, like)
        if cut is None:
            return part.cpu()
        whole = torch.empty(shape, dtype=part.dtype) if whole is None else whole
        cut.put(whole, part.cpu())
    return whole


def _part(piece: Piece | None, holder: int, shape: tuple[int, ...], cut: Cut | None, like: Tensor) -> Tensor:
    if holder == 0:
        assert piece is not None
        return piece.weight.detach().clone()
    buffer = torch.empty(cut.shape_of(shape) if cut else shape, dtype=like.dtype, device=like.device)
    dist.recv(buffer, src=holder)
    return buffer
