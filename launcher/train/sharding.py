"""Tensor parallelism: the cut of each weight, and the layers that compute with one rank's part of it.

Column layers hold some of the outputs, row layers some of the inputs (Shoeybi et al. 2019, arXiv 1909.08053). Our own layers
instead of DeepSpeed's AutoTP: they are made from weights that were never whole in this rank, they know GPT-2's transposed and
Phi-3's fused matrices, and they sum the gradient of weights that are shared by the heads (docs/deepspeed-traps.md).
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from launcher.train.families import Family, family_of, heads_of
from launcher.train.mesh import Mesh
from launcher.train.pieces import Cut


class CopyIn(torch.autograd.Function):
    """Forward: the same tensor. Backward: the sum of the gradients of all tensor ranks."""

    @staticmethod
    def forward(ctx, group: dist.ProcessGroup, x: Tensor) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradient = gradient.contiguous().clone()  # in place on a copy: autograd may hand the same tensor to somebody else
        dist.all_reduce(gradient, group=ctx.group)
        return None, gradient


class SumOut(torch.autograd.Function):
    """Forward: the sum over all ranks of the group. Backward: the same gradient for each."""

    @staticmethod
    def forward(ctx, group: dist.ProcessGroup, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return None, gradient


class _Part(nn.Module):
    """Weight and bias of a Linear or Conv1D, cut; under the same names as in the whole layer."""

    def __init__(self, layer: nn.Linear | Conv1D, group: dist.ProcessGroup):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.group, self.transposed = group, isinstance(layer, Conv1D)

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t() if self.transposed else self.weight)


class ColumnLinear(_Part):
    """Some of the outputs of a matrix; the input is whole on every rank, and so is its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(CopyIn.apply(self.group, x))
        return y if self.bias is None else y + self.bias


class RowLinear(_Part):
    """All outputs of a matrix from some of its inputs, summed over the ranks; the bias is whole and added once."""

    def forward(self, x: Tensor) -> Tensor:
        y = SumOut.apply(self.group, self.product(x))
        return y if self.bias is None else y + self.bias


class VocabEmbedding(nn.Module):
    """Embedding whose rows are split over the ranks: the others' tokens come out as zeros, then the ranks add up."""

    def __init__(self, embedding: nn.Embedding, group: dist.ProcessGroup, start: int):
        super().__init__()
        self.weight = embedding.weight
        self.group, self.start = group, start
        self.scale = getattr(embedding, "scalar_embed_scale", None)  # Gemma multiplies its embedding

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.weight.shape[0]
        local = ids - self.start
        elsewhere = (local < 0) | (local >= rows)
        x = F.embedding(local.masked_fill(elsewhere, 0), self.weight).masked_fill(elsewhere.unsqueeze(-1), 0)
        x = SumOut.apply(self.group, x)
        return x if self.scale is None else x * torch.tensor(self.scale, dtype=x.dtype, device=x.device)


class VocabHead(ColumnLinear):
    """The language head with some of the vocabulary: logits of columns [start, start + rows) of `vocab`."""

    def __init__(self, head: nn.Linear, group: dist.ProcessGroup, start: int, vocab: int):
        super().__init__(head, group)
        self.start, self.vocab = start, vocab


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharder:
    """What one tensor rank takes of each weight of one model, by its Hugging Face name."""

    family: Family
    config: PretrainedConfig
    tp: int
    tp_rank: int
    vocabulary: frozenset[str]  # names of the weights and biases that are split by tokens: head, and embedding where tied

    def cut(self, name: str, shape: tuple[int, ...], *, transposed: bool) -> Cut | None:
        """None: every tensor rank holds the whole weight."""
        if name in self.vocabulary:
            return Cut(dim=0, ranges=(share(0, shape[0], self.tp, self.tp_rank),))
        layer, _, kind = name.rpartition(".")
        role = self.role(layer)
        if role is None or (role == "row" and kind == "bias"):
            return None
        if role == "row":
            return self._even(shape, 0 if transposed else 1)
        dim = len(shape) - 1 if transposed else 0
        matrix = _ends_with(_matrix(layer), self.family.column)
        how = (self.family.fused or {}).get(matrix or "")
        return Cut(dim=dim, ranges=self._fused(how, shape[dim])) if how else self._even(shape, dim)

    def role(self, layer: str) -> str | None:
        """`column` or `row`. Of LoRA's two matrices one follows its layer: B has its outputs, A its inputs."""
        matrix = _matrix(layer)
        column, row = _ends_with(matrix, self.family.column), _ends_with(matrix, self.family.row)
        if ".lora_A." in layer:
            return "row" if row else None
        if ".lora_B." in layer:
            return "column" if column else None
        return "column" if column else "row" if row else None

    def _even(self, shape: tuple[int, ...], dim: int) -> Cut:
        return Cut(dim=dim, ranges=(share(0, shape[dim], self.tp, self.tp_rank),))

    def _fused(self, how: str, size: int) -> tuple[tuple[int, int], ...]:
        """Of each of the matrices that lie behind each other its own share."""
        heads, kv_heads, width = heads_of(self.config)
        sizes = [size // 2] * 2 if how == "halves" else [heads * width, kv_heads * width, kv_heads * width]
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        return tuple(share(start, own, self.tp, self.tp_rank) for start, own in zip(starts, sizes, strict=True))


def share(start: int, size: int, parts: int, index: int) -> tuple[int, int]:
    """(start, stop) of one of `parts` nearly equal shares of [start, start + size)."""
    return start + size * index // parts, start + size * (index + 1) // parts


def _matrix(layer: str) -> str:
    """The layer of the whole model that a layer of peft's belongs to."""
    return re.split(r"\.(?:base_layer|lora_[AB])\b", layer)[0]


def _ends_with(layer: str, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if layer == name or layer.endswith(f".{name}")), None)


def make_sharder(model: PreTrainedModel, mesh: Mesh) -> Sharder:
    """For the tensor rank of this mesh; with tp 1 every cut is the whole weight."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {module: name for name, module in model.named_modules()}
    split = [head] if head is not None else []
    split += [embedding] if head is not None and head.weight is embedding.weight else []
    vocabulary = {f"{names[module]}.{kind}" for module in split for kind in ("weight", "bias")}
    config = model.config.get_text_config()
    return Sharder(family=family_of(config), config=config, tp=mesh.tp, tp_rank=mesh.tp_rank, vocabulary=frozenset(vocabulary))


def shard_layers(model: PreTrainedModel, names: dict[nn.Module, str], sharder: Sharder, group: dist.ProcessGroup) -> None:
    """Replace the layers that are in `names` by those that compute with cut weights. Before initialize.

    `names`: filled modules and what they are called in the whole model, whatever has been taken out since.
    """
    for parent in list(model.modules()):
        for attribute, module in list(parent.named_children()):
            name = names.get(module)
            if name is None:
                continue
            new = _layer(name, module, sharder, group)
            if new is not None:
                new.train(module.training)
                setattr(parent, attribute, new)
            elif _ends_with(name, sharder.family.shared):
                for weight in module.parameters(recurse=False):
                    if weight.requires_grad:  # frozen under an adapter
                        weight.register_hook(_summed_over(group))
            else:
                _mend_attention(module, sharder)


def _layer(name: str, module: nn.Module, sharder: Sharder, group: dist.ProcessGroup) -> nn.Module | None:
    start, _ = share(0, sharder.config.vocab_size, sharder.tp, sharder.tp_rank)
    if f"{name}.weight" in sharder.vocabulary:
        if isinstance(module, nn.Embedding):
            return VocabEmbedding(module, group, start)
        return VocabHead(module, group, start, sharder.config.vocab_size)
    role = sharder.role(name) if isinstance(module, nn.Linear | Conv1D) else None
    return {"column": ColumnLinear, "row": RowLinear}[role](module, group) if role else None


def _summed_over(group: dist.ProcessGroup):
    def total(gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=group)
        return gradient

    return total


def _mend_attention(module: nn.Module, sharder: Sharder) -> None:
    """Attention modules that count heads themselves count this rank's only."""
    if hasattr(module, "split_size"):  # GPT-2
        module.split_size //= sharder.tp
    if hasattr(module, "num_heads"):  # GPT-2, OPT
        module.num_heads //= sharder.tp
    if hasattr(module, "num_key_value_heads"):  # Phi-3 reads the query heads from its config
        module.num_key_value_heads //= sharder.tp
        module.config = copy.copy(module.config)
        module.config.num_attention_heads //= sharder.tp
        module.config.num_key_value_heads //= sharder.tp
