"""A model on fake tensors -> what one of its blocks is made of: its matrices as they are declared, its heads, its norms. DO.

Nothing is read from names but what a norm is: the block is run once, and what runs in it is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

TOKENS = 4


class NoSuchBlock(Exception):
    """The model is no decoder whose blocks are what a plan takes them for. The text ends `… cannot be planned: `."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSeen:
    """One weight matrix."""

    path: str  # inside the block
    inputs: int
    outputs: int
    bias: bool
    row: bool  # the last of its part: tensor ranks would split its inputs

    def as_dict(self) -> dict[str, object]:
        name = self.path.rpartition(".")[2]
        return {"name": name, "inputs": self.inputs, "outputs": self.outputs, "bias": self.bias, "row": self.row}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One block: attention with its matrices before and one behind it, and an MLP, side by side or one after the other."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    gated: bool
    norms: int
    layer_norm: bool
    query_key_norm: bool
    linears: tuple[LinearSeen, ...]
    attention_bias: bool
    out_bias: bool
    mlp_bias: bool


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What ran, in order. A name is a module's path inside the block."""

    linears: list[tuple[str, nn.Module]] = field(default_factory=list)
    norms: list[tuple[str, nn.Module]] = field(default_factory=list)
    attention: list[tuple[str, int, torch.Size, torch.Size, bool]] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)  # modules that are running


class _Watch(TorchFunctionMode):
    """Sees every call of the attention kernel inside the block: where, behind how many matrices, its heads, whether causal."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and self.seen.inside:
            query, _, value = args[:3]
            causal = bool((kwargs or {}).get("is_causal"))
            self.seen.attention.append((self.seen.inside[-1], len(self.seen.linears), query.shape, value.shape, causal))
        return func(*args, **(kwargs or {}))


def trace_block(model: PreTrainedModel, path: str) -> Trace:
    """The block at `path` of a model that is run on one short row. NoSuchBlock for anything that is not as in Trace."""
    block, seen = model.get_submodule(path), _Seen()
    with _hooks(block, seen), without_masks(), _Watch(seen):
        model(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), use_cache=False)
    if len(seen.attention) != 1:
        raise NoSuchBlock(f"a block calls the attention kernel {len(seen.attention)} times, not once")
    ((place, behind, query, value, causal),) = seen.attention
    if not causal:
        raise NoSuchBlock("its attention sees the tokens to come")
    if not place or len({name for name, _ in seen.linears}) != len(seen.linears):
        raise NoSuchBlock("its block has no attention of its own, or passes a matrix twice")
    into, out, mlp = _parts(seen, place, behind)
    heads, head_dim = query[1], query[3]
    hidden, ffn = outputs_of(out), inputs_of(mlp[-1][1])
    kv_heads = _kv_heads(model, into, heads, head_dim, value)
    widths = sum(outputs_of(module) for _, module in mlp[:-1])
    if outputs_of(mlp[-1][1]) != hidden or widths not in (ffn, 2 * ffn):
        raise NoSuchBlock("its MLP is neither two matrices nor two and a gate")
    declared = [name for name, _ in block.named_modules()]
    outside = [norm for norm in seen.norms if not norm[0].startswith(f"{place}.")]
    return Trace(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        gated=widths == 2 * ffn,
        norms=len(outside),
        layer_norm=any("LayerNorm" in type(norm).__name__ for _, norm in outside),
        query_key_norm=len(outside) < len(seen.norms),
        linears=tuple(
            _linear(name, module, row=module in (out, mlp[-1][1]))
            for name, module in sorted(seen.linears, key=lambda seen: declared.index(seen[0]))
        ),
        attention_bias=any(module.bias is not None for _, module in into),
        out_bias=out.bias is not None,
        mlp_bias=any(module.bias is not None for _, module in mlp),
    )


Named = list[tuple[str, nn.Module]]


def _parts(seen: _Seen, place: str, behind: int) -> tuple[Named, nn.Module, Named]:
    """(matrices into the attention, the one out of it, matrices of the MLP)."""
    attention = [(number, item) for number, item in enumerate(seen.linears) if item[0].startswith(f"{place}.")]
    into = [item for number, item in attention if number < behind]
    out = [item[1] for number, item in attention if number >= behind]
    mlp = [item for item in seen.linears if not item[0].startswith(f"{place}.")]
    if not into or len(out) != 1 or len(mlp) < 2:
        raise NoSuchBlock("its block is not attention, with one matrix behind it, and an MLP")
    return into, out[0], mlp


def _kv_heads(model: PreTrainedModel, into: Named, heads: int, head_dim: int, value: torch.Size) -> int:
    """From the widths of what is made for queries, keys and values: the kernel may see them repeated for each query."""
    kv_heads, rest = divmod(sum(outputs_of(module) for _, module in into) - heads * head_dim, 2 * head_dim)
    told = getattr(model.config, "num_key_value_heads", None) or kv_heads
    if rest or kv_heads < 1 or heads % kv_heads or value[3] != head_dim or told != kv_heads:
        raise NoSuchBlock("its attention makes more, or other, than queries, keys and values of one width")
    return kv_heads


@contextmanager
def _hooks(block: nn.Module, seen: _Seen) -> Iterator[None]:
    """Every module of the block tells when it begins and ends."""
    with ExitStack() as stack:
        for name, module in block.named_modules():
            before = module.register_forward_pre_hook(lambda module, _, name=name: _begins(seen, name, module))
            after = module.register_forward_hook(lambda *_: _ends(seen))
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


def _ends(seen: _Seen) -> None:
    seen.inside.pop()


def _begins(seen: _Seen, name: str, module: nn.Module) -> None:
    seen.inside.append(name)
    if isinstance(module, nn.Linear | Conv1D):
        seen.linears.append((name, module))
    elif "Norm" in type(module).__name__:
        seen.norms.append((name, module))


@contextmanager
def without_masks() -> Iterator[None]:
    """transformers leaves the mask of whole rows out where it sees their values; of fake tensors it sees none."""
    kept = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = lambda *_, **__: None
    try:
        yield
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = kept


def _linear(name: str, module: nn.Module, *, row: bool) -> LinearSeen:
    return LinearSeen(path=name, inputs=inputs_of(module), outputs=outputs_of(module), bias=module.bias is not None, row=row)


def inputs_of(module: nn.Module) -> int:
    """Columns of a matrix as it is applied; Conv1D keeps it the other way round."""
    return int(module.weight.shape[0 if isinstance(module, Conv1D) else 1])


def outputs_of(module: nn.Module) -> int:
    return int(module.weight.shape[1 if isinstance(module, Conv1D) else 0])
