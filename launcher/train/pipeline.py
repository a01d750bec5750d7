"""Pipeline parallelism: a stage is the Hugging Face model with the other stages' parts taken out, run by DeepSpeed's engine.

The family's own forward code makes masks and positions in every stage, so a new family needs no code here. Between stages
travel the hidden states and, for packed rows, the positions; rows are padded on the right, where causal attention never looks,
so no mask travels. Layers that DeepSpeed sees: embedding, one body per stage, head; a tied embedding is its TiedLayerSpec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import Tensor, nn

from launcher.train.building import Skeleton, fill
from launcher.train.families import Family, family_of
from launcher.train.mesh import pipeline_topology
from launcher.train.pieces import Piece

Saved = Callable[[], AbstractContextManager]  # where the forward pass keeps what the backward pass needs
Score = Callable[[Tensor], Tensor]  # hidden states of the last block → what the loss needs
Wire = Tensor | tuple[Tensor, ...]  # hidden states, or (hidden states, positions); into the embedding: ids instead


class Embedding(nn.Module):
    """ids → hidden states; positions pass."""

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.embedding = embedding

    @property
    def weight(self) -> nn.Parameter:
        """Where DeepSpeed looks for the tied weight."""
        return self.embedding.weight

    def forward(self, wire: Wire) -> Wire:
        ids, *rest = wire if isinstance(wire, tuple) else (wire,)
        return (self.embedding(ids), *rest) if rest else self.embedding(ids)


class Body(nn.Module):
    """The blocks of one stage, with what stands before the first and behind the last of all."""

    def __init__(self, base: nn.Module, saved: Saved):
        super().__init__()
        self.base, self._saved = base, saved

    def forward(self, wire: Wire) -> Wire:
        hidden, *rest = wire if isinstance(wire, tuple) else (wire,)
        with self._saved():
            out = self.base(inputs_embeds=hidden, position_ids=rest[0] if rest else None, use_cache=False)
        return (out.last_hidden_state, *rest) if rest else out.last_hidden_state


class Head(nn.Module):
    """Hidden states → scores. Inside the module, not in the loss: weights that only the loss uses get no gradient from
    DeepSpeed's BF16_Optimizer (docs/deepspeed-traps.md).
    """

    def __init__(self, head: nn.Module, score: Score):
        super().__init__()
        self.head, self._score = head, score

    def forward(self, wire: Wire) -> Tensor:
        return self._score(wire[0] if isinstance(wire, tuple) else wire)


class NoPositions(nn.Module):
    """Instead of learned positions in the stages that do not add them."""

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        return torch.zeros(())  # without a dimension it takes part in a sum without deciding its dtype or device


class Stages(PipelineModule):
    """PipelineModule whose cuts are given: layer numbers at which the stages start, and the end."""

    def __init__(self, layers: Sequence[object], starts: Sequence[int], **kwargs: object):
        self._starts = list(starts)
        super().__init__(layers, **kwargs)

    def _partition_layers(self, method: str = "given") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self.parts = self._starts
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])


def build_stages(
    skeleton: Skeleton,
    blocks: Sequence[int],
    *,
    score: Score,
    loss: Callable[[Tensor, Tensor], Tensor],
    saved: Saved = nullcontext,
) -> tuple[Stages, list[Piece]]:
    """The PipelineModule of this rank's stage and its pieces. `blocks`: how many blocks each stage holds. Collective."""
    mesh, family = skeleton.mesh, family_of(skeleton.model.config.get_text_config())
    entry = Embedding(skeleton.model.get_input_embeddings())
    skeleton.model.add_module("entry", entry)  # so that it is found when layers are cut
    pieces = fill(skeleton, _take_out(skeleton, family, sum(blocks[: mesh.pp_rank]), sum(blocks[: mesh.pp_rank + 1])))
    if not mesh.first_stage:  # of a tied weight the first stage's copy is the one that is written
        pieces = [replace(piece, tells=False) if piece.weight is entry.weight else piece for piece in pieces]
    layers = [
        TiedLayerSpec("embedding", Embedding, entry.embedding) if skeleton.tied else LayerSpec(Embedding, entry.embedding),
        *[LayerSpec(Body, skeleton.base, saved) for _ in blocks],
        TiedLayerSpec("embedding", Embedding, entry.embedding, forward_fn=_tied_head(score))
        if skeleton.tied
        else LayerSpec(Head, skeleton.head, score),
    ]
    stages = Stages(
        layers,
        [0, *range(2, mesh.pp + 1), mesh.pp + 2],
        topology=pipeline_topology(mesh),
        loss_fn=loss,
        dynamic_shape=True,  # also in pretraining, where rows are of one length: held-out rows come in other micro-batches
    )
    return stages, pieces


def _tied_head(score: Score) -> Callable[[Embedding, Wire], Tensor]:
    """The head in the last stage, where its weight is the embedding's."""
    return lambda _, wire: score(wire[0] if isinstance(wire, tuple) else wire)


def _take_out(skeleton: Skeleton, family: Family, start: int, stop: int) -> list[nn.Module]:
    """Leave blocks [start, stop) in the base model; the modules that this stage fills with weights."""
    mesh, base = skeleton.mesh, skeleton.base
    head, embedding = skeleton.head, skeleton.model.get_input_embeddings()
    kept: list[nn.Module] = [embedding] if mesh.first_stage or (skeleton.tied and mesh.last_stage) else []
    _put(base, family.embedding, None)  # every body is given hidden states
    if family.positions and mesh.first_stage:
        kept.append(base.get_submodule(family.positions))
    elif family.positions:
        _put(base, family.positions, NoPositions())
    for paths, stays in ((family.entry, mesh.first_stage), (family.exit, mesh.last_stage)):
        for path in paths:
            if stays:
                kept.append(base.get_submodule(path))
            else:
                _put(base, path, nn.Identity())
    blocks = list(base.get_submodule(family.blocks))[start:stop]
    _put(base, family.blocks, nn.ModuleList(blocks))
    kept += blocks
    return [*kept, head] if mesh.last_stage else kept


def _put(base: nn.Module, path: str, module: nn.Module | None) -> None:
    parent, _, name = path.rpartition(".")
    setattr(base.get_submodule(parent), name, module)
