"""ModelShape -> the weight matrices of one block, under the names that transformers gives them. DERIVE, pure."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.families.linear import Linear
from launcher.plan.families.model_shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """Matrices of a block: one name where a family keeps several in one."""

    attention: tuple[str, ...]
    attention_out: str
    mlp: tuple[str, ...]
    mlp_out: str


_QKV = ("q_proj", "k_proj", "v_proj")
_GATED_NAMES = _Names(attention=_QKV, attention_out="o_proj", mlp=("gate_proj", "up_proj"), mlp_out="down_proj")
_FUSED_NAMES = _Names(attention=("query_key_value",), attention_out="dense", mlp=("dense_h_to_4h",), mlp_out="dense_4h_to_h")
_NAMES: dict[str, _Names] = {
    "phi": _Names(attention=_QKV, attention_out="dense", mlp=("fc1",), mlp_out="fc2"),
    "phi3": _Names(attention=("qkv_proj",), attention_out="o_proj", mlp=("gate_up_proj",), mlp_out="down_proj"),
    "gpt2": _Names(attention=("c_attn",), attention_out="c_proj", mlp=("c_fc",), mlp_out="c_proj"),
    "gpt_neox": _FUSED_NAMES,
    "falcon": _FUSED_NAMES,
    "opt": _Names(attention=_QKV, attention_out="out_proj", mlp=("fc1",), mlp_out="fc2"),
}


def block_linears(shape: ModelShape, block: int = 0) -> tuple[Linear, ...]:
    """In the order in which a block declares them. Experts are none: transformers keeps those of a block in two stacks.

    `block`, from 0, matters only where some blocks have experts and others none.
    """
    if shape.blueprint is not None:
        return shape.blueprint.linears
    if not shape.has_experts(block):
        return _attention(shape) + _mlp(shape, shape.dense_ffn or shape.ffn)
    if not shape.shared_ffn:
        return _attention(shape)
    gate = Linear(name="shared_expert_gate", inputs=shape.hidden, outputs=1, bias=False, row=True)
    return _attention(shape) + _mlp(shape, shape.shared_ffn) + (gate,)


def _attention(shape: ModelShape) -> tuple[Linear, ...]:
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    names = _NAMES.get(shape.family, _GATED_NAMES)
    widths = [query + 2 * key_value] if len(names.attention) == 1 else [query, key_value, key_value]
    into = _columns(names.attention, shape.hidden, widths, bias=shape.attention_bias)
    out = Linear(name=names.attention_out, inputs=query, outputs=shape.hidden, bias=shape.out_bias, row=True)
    return (out, *into) if shape.family == "phi3" else (*into, out)


def _mlp(shape: ModelShape, ffn: int) -> tuple[Linear, ...]:
    names = _NAMES.get(shape.family, _GATED_NAMES)
    widths = [2 * ffn if shape.gated else ffn] if len(names.mlp) == 1 else [ffn, ffn]
    into = _columns(names.mlp, shape.hidden, widths, bias=shape.mlp_bias)
    return (*into, Linear(name=names.mlp_out, inputs=ffn, outputs=shape.hidden, bias=shape.mlp_bias, row=True))


def _columns(names: tuple[str, ...], inputs: int, widths: list[int], *, bias: bool) -> tuple[Linear, ...]:
    """Matrices that read the same input and are split by their outputs."""
    sizes = zip(names, widths, strict=True)
    return tuple(Linear(name=name, inputs=inputs, outputs=outputs, bias=bias, row=False) for name, outputs in sizes)
