"""config.json -> ModelShape for the families without experts. DERIVE, pure.

Absent fields take the defaults of transformers' own config classes.
"""

from __future__ import annotations

from collections.abc import Callable

from launcher.plan.families.model_shape import AnyFamily, ModelShape
from launcher.plan.families.reader import Reader


def _gpt2(reader: Reader, family: AnyFamily) -> ModelShape:
    hidden, heads = reader.count("n_embd"), reader.count("n_head")
    return ModelShape(
        family=family,
        vocab=reader.count("vocab_size"),
        hidden=hidden,
        layers=reader.count("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // max(1, heads),
        ffn=reader.count("n_inner", 4 * hidden),
        positions=reader.count("n_positions", 1024),
        tied=reader.flag("tie_word_embeddings", True),
        attention_bias=True,
        out_bias=True,
        mlp_bias=True,
    )


def _gpt_neox(reader: Reader, family: AnyFamily) -> ModelShape:
    hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    bias = reader.flag("attention_bias", True)
    return ModelShape(
        family=family,
        vocab=reader.count("vocab_size"),
        hidden=hidden,
        layers=reader.count("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // max(1, heads),
        ffn=reader.count("intermediate_size"),
        positions=reader.count("max_position_embeddings", 2048),
        tied=reader.flag("tie_word_embeddings", False),
        attention_bias=bias,
        out_bias=bias,
        mlp_bias=True,
    )


def _opt(reader: Reader, family: AnyFamily) -> ModelShape:
    hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    reader.require("word_embed_proj_dim", hidden, "an embedding of another width than the blocks")
    reader.require("do_layer_norm_before", True, "a norm behind each block instead of before it")
    reader.require("layer_norm_elementwise_affine", True, "norms without weights")
    reader.require("_remove_final_layer_norm", False, "no norm behind the last block")
    bias = reader.flag("enable_bias", True)
    return ModelShape(
        family=family,
        vocab=reader.count("vocab_size"),
        hidden=hidden,
        layers=reader.count("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // max(1, heads),
        ffn=reader.count("ffn_dim"),
        positions=reader.count("max_position_embeddings", 2048),
        tied=reader.flag("tie_word_embeddings", True),
        attention_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
    )


def _falcon(reader: Reader, family: AnyFamily) -> ModelShape:
    hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    bias = reader.flag("bias", False)
    return ModelShape(
        family=family,
        vocab=reader.count("vocab_size"),
        hidden=hidden,
        layers=reader.count("num_hidden_layers"),
        heads=heads,
        kv_heads=_falcon_kv_heads(reader, heads),
        head_dim=hidden // max(1, heads),
        ffn=reader.count("ffn_hidden_size", 4 * hidden),
        positions=reader.count("max_position_embeddings", 2048),
        tied=reader.flag("tie_word_embeddings", True),
        attention_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        norms_per_block=_falcon_norms(reader),
    )


def _falcon_kv_heads(reader: Reader, heads: int) -> int:
    """Only the new architecture (40B) reads num_kv_heads; the old one has one, or as many as heads."""
    if reader.flag("new_decoder_architecture", False):
        return reader.count("num_kv_heads", heads)
    return 1 if reader.flag("multi_query", True) else heads


def _falcon_norms(reader: Reader) -> int:
    """Attention and MLP side by side read one normed input, or one each where num_ln_in_parallel_attn is 2."""
    if not reader.flag("parallel_attn", True):
        return 2
    given = reader.count("num_ln_in_parallel_attn", 2 if reader.flag("new_decoder_architecture", False) else 1)
    return 2 if given == 2 else 1


_POSITIONS: dict[AnyFamily, int] = {
    "llama": 2048,
    "mistral": 131_072,
    "qwen2": 32_768,
    "qwen3": 32_768,
    "gemma": 8192,
    "phi": 2048,
    "phi3": 4096,
}
_WINDOWS: dict[AnyFamily, int | None] = {"mistral": 4096, "qwen2": 4096, "qwen3": 4096, "phi3": None}
_KV_HEADS: dict[AnyFamily, int] = {"mistral": 8, "gemma": 16}  # where the class has a number of its own, not that of the heads
_HEAD_DIM: dict[AnyFamily, int] = {"qwen3": 128, "gemma": 256}


def _rotary(reader: Reader, family: AnyFamily) -> ModelShape:
    hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    own_bias = family == "phi" or (family in ("llama", "qwen3", "gemma") and reader.flag("attention_bias", False))
    return ModelShape(
        family=family,
        vocab=reader.count("vocab_size"),
        hidden=hidden,
        layers=reader.count("num_hidden_layers"),
        heads=heads,
        kv_heads=reader.count("num_key_value_heads", _KV_HEADS.get(family, heads)),
        head_dim=reader.count("head_dim", _HEAD_DIM.get(family, hidden // max(1, heads))),
        ffn=reader.count("intermediate_size"),
        positions=reader.count("max_position_embeddings", _POSITIONS[family]),
        tied=reader.flag("tie_word_embeddings", family == "gemma"),
        attention_bias=family == "qwen2" or own_bias,
        out_bias=own_bias,
        mlp_bias=family == "phi" or (family == "llama" and reader.flag("mlp_bias", False)),
        norms_per_block=1 if family == "phi" else 2,
        query_key_norm=family == "qwen3" or (family == "phi" and reader.flag("qk_layernorm", False)),
        window=_window(reader, family),
    )


def _window(reader: Reader, family: AnyFamily) -> int | None:
    """Qwen has a width that only `use_sliding_window` makes one, and then in the upper layers; an absent width is no null."""
    config = reader.config
    if family not in _WINDOWS or ("sliding_window" in config and config["sliding_window"] is None):
        return None
    if family in ("qwen2", "qwen3") and not reader.flag("use_sliding_window", False):
        return None
    window = reader.count("sliding_window", _WINDOWS[family]) if "sliding_window" in config else _WINDOWS[family]
    return window if family not in ("qwen2", "qwen3") or _upper_layers_slide(reader) else None


def _upper_layers_slide(reader: Reader) -> bool:
    kinds = reader.names("layer_types")
    if kinds:
        return "sliding_attention" in kinds
    below = reader.config.get("max_window_layers")
    if below is None:
        below = 28
    if isinstance(below, bool) or not isinstance(below, int):
        reader.fail("max_window_layers", f"{below!r} is not a whole number")
        return False
    return below < reader.count("num_hidden_layers")


DENSE: dict[AnyFamily, Callable[[Reader, AnyFamily], ModelShape]] = {
    **dict.fromkeys(_POSITIONS, _rotary),
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "falcon": _falcon,
}
