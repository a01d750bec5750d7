"""config.json -> ModelShape for the families with experts. DERIVE, pure.

Absent fields take the defaults of transformers' own config classes. Routing (norm_topk_prob, the auxiliary loss) has no weights
and is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from launcher.plan.families.model_shape import AnyFamily, ModelShape
from launcher.plan.families.reader import Reader


def _mixtral(reader: Reader, family: AnyFamily) -> ModelShape:
    base = _without_experts(reader, family, kv_heads=8, positions=131_072)
    experts, per_token = _experts(reader, 8, ("num_local_experts", "num_experts"), per_token=2)
    return replace(
        base,
        ffn=per_token * base.ffn,
        window=_given_window(reader, default=None),
        experts=experts,
        experts_per_token=per_token,
        expert_ffn=base.ffn,
    )


def _qwen2_moe(reader: Reader, family: AnyFamily) -> ModelShape:
    base = replace(
        _without_experts(reader, family, kv_heads=16, positions=32_768),
        attention_bias=reader.flag("qkv_bias", True),
        window=_given_window(reader, default=4096) if _lower_layers_slide(reader) else None,
    )
    shared_ffn = reader.count("shared_expert_intermediate_size", 5632)
    experts, per_token = _experts(reader, 60, ("num_experts",), per_token=4)
    return _with_experts(reader, base, experts=experts, per_token=per_token, shared_ffn=shared_ffn)


def _qwen3_moe(reader: Reader, family: AnyFamily) -> ModelShape:
    bias = reader.flag("attention_bias", False)
    base = replace(
        _without_experts(reader, family, kv_heads=4, positions=32_768),
        attention_bias=bias,
        out_bias=bias,
        query_key_norm=True,
        window=_given_window(reader, default=4096) if reader.flag("use_sliding_window", False) else None,
    )
    experts, per_token = _experts(reader, 128, ("num_experts", "num_local_experts"), per_token=8)
    return _with_experts(reader, base, experts=experts, per_token=per_token, shared_ffn=0)


def _without_experts(reader: Reader, family: AnyFamily, *, kv_heads: int, positions: int) -> ModelShape:
    """What the families have in common: rotary, gated, no bias."""
    hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    return ModelShape(
        family=family,
        vocab=reader.count("vocab_size"),
        hidden=hidden,
        layers=reader.count("num_hidden_layers"),
        heads=heads,
        kv_heads=reader.count("num_key_value_heads", kv_heads),
        head_dim=reader.count("head_dim", hidden // max(1, heads)),
        ffn=reader.count("intermediate_size"),
        positions=reader.count("max_position_embeddings", positions),
        tied=reader.flag("tie_word_embeddings", False),
        attention_bias=False,
        out_bias=False,
        mlp_bias=False,
    )


def _experts(reader: Reader, default: int, fields: tuple[str, ...], *, per_token: int) -> tuple[int, int]:
    """(experts, those of one token). `fields`: names of the first, as published or as transformers 5 saves it."""
    field = next((field for field in fields if reader.config.get(field) is not None), fields[0])
    experts, per_token = reader.count(field, default), reader.count("num_experts_per_tok", per_token)
    if 0 < experts < per_token:
        reader.fail("num_experts_per_tok", f"{per_token} is more than the {experts} experts")
    return experts, per_token


def _with_experts(reader: Reader, base: ModelShape, *, experts: int, per_token: int, shared_ffn: int) -> ModelShape:
    """Qwen's models: every decoder_sparse_step-th block has experts, but for those that mlp_only_layers lists."""
    expert_ffn, step = reader.count("moe_intermediate_size"), reader.count("decoder_sparse_step", 1)
    listed = reader.counts("mlp_only_layers")
    dense = tuple(block for block in range(base.layers) if block in listed or (block + 1) % max(1, step))
    widths = [base.ffn] if dense else []
    widths += [per_token * expert_ffn + shared_ffn] if len(dense) < base.layers else []
    return replace(
        base,
        ffn=max(widths, default=0),
        experts=experts,
        experts_per_token=per_token,
        expert_ffn=expert_ffn,
        shared_ffn=shared_ffn,
        dense_ffn=base.ffn,
        dense_blocks=dense,
    )


def _given_window(reader: Reader, *, default: int | None) -> int | None:
    """An absent width takes the default, null is none."""
    if "sliding_window" not in reader.config:
        return default
    return reader.count("sliding_window") if reader.config["sliding_window"] is not None else None


def _lower_layers_slide(reader: Reader) -> bool:
    """Qwen2's layers with experts slide from the first on, every second one, below max_window_layers."""
    kinds = reader.names("layer_types")
    if not reader.flag("use_sliding_window", False):
        return False
    return "sliding_attention" in kinds if kinds else reader.config.get("max_window_layers", 28) != 0


EXPERTS: dict[AnyFamily, Callable[[Reader, AnyFamily], ModelShape]] = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
}
