"""config.json -> ModelShape: the widths and counts of a model that decide its parameters and its memory.

DERIVE. Reads a parsed config, opens no file. Absent fields take the defaults of transformers' own config classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from launcher.errors import LauncherError, Problem
from launcher.spec.model import Family, NewModel
from launcher.spec.new_model import ARCHITECTURES, new_model_config

Config = Mapping[str, object]
FAMILIES: tuple[Family, ...] = tuple(ARCHITECTURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One weight matrix of a block. LoRA and nf4 work on these and on nothing else."""

    name: str  # last part of the module's name
    inputs: int
    outputs: int
    bias: bool
    row: bool  # tensor parallel ranks split its inputs and add up; the others split their outputs

    @property
    def num_weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What has to be known of a causal language model to plan it."""

    family: Family
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    positions: int
    tied: bool
    attention_bias: bool  # on q, k, v
    out_bias: bool  # on the attention's output matrix
    mlp_bias: bool
    query_key_norm: bool = False  # a norm on each head's query and key
    window: int | None = None  # tokens that a layer with a sliding window looks back on, its own included; None: no such layer

    @property
    def gated(self) -> bool:
        """SwiGLU or its like: a third matrix in the MLP."""
        return self.family not in ("phi", "gpt2", "gpt_neox", "opt")

    @property
    def layer_norm(self) -> bool:
        """LayerNorm with a bias instead of RMSNorm."""
        return self.family in ("phi", "gpt2", "gpt_neox", "opt")

    @property
    def norms_per_block(self) -> int:
        """Phi's attention and MLP read the same normed input."""
        return 1 if self.family == "phi" else 2

    @property
    def learned_positions(self) -> int:
        """Rows of the table of positions, 0 where they are rotary. OPT's begins with two rows that nothing uses."""
        return {"gpt2": self.positions, "opt": self.positions + 2}.get(self.family, 0)

    @property
    def head_bias(self) -> bool:
        return self.family == "phi"


def shape_from_config(config: Config, *, file: str) -> ModelShape:
    """The shape that `config` describes; LauncherError with every field that is missing or broken, named with `file`."""
    reader = _Reader(config, file)
    family = reader.family()
    if family is None:
        raise LauncherError(reader.problems)
    shape = _READERS[family](reader, family)
    reader.refuse_quantized()
    if shape.hidden and shape.heads and shape.hidden % shape.heads and "head_dim" not in config and family != "gemma":
        reader.fail("hidden_size", f"{shape.hidden} is not a multiple of the {shape.heads} attention heads")
    if shape.kv_heads and shape.heads % shape.kv_heads:
        reader.fail("num_key_value_heads", f"{shape.kv_heads} does not divide the {shape.heads} attention heads")
    if reader.problems:
        raise LauncherError(reader.problems)
    return shape


def shape_of_new(new: NewModel, vocab: int) -> ModelShape:
    """The shape of a model that is drawn with `vocab` embeddings."""
    return shape_from_config(new_model_config(new, vocab), file="model.new")


class _Reader:
    """Collects one problem for each field that cannot be used, so that all of them are reported at once."""

    def __init__(self, config: Config, file: str) -> None:
        self.config = config
        self.file = file
        self.problems: list[Problem] = []

    def fail(self, field: str, what: str) -> None:
        hint = "use the config.json that belongs to the weights"
        self.problems.append(Problem(code="E213", where=self.file, what=f"{field}: {what}", hint=hint))

    def family(self) -> Family | None:
        name = self.config.get("model_type")
        if name in ARCHITECTURES:
            return name
        near = get_close_matches(str(name), FAMILIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use a model of one of these families: {', '.join(FAMILIES)}"
        what = f"model_type: {name!r} is not a family that can be planned ({', '.join(FAMILIES)})"
        if name is None:
            what = "model_type: is missing"
        self.problems.append(Problem(code="E212", where=self.file, what=what, hint=hint))
        return None

    def count(self, field: str, default: int | None = None) -> int:
        """A whole number of at least 1; `default` where the field is absent or null; 0 after a failure."""
        value = self.config.get(field)
        if value is None:
            if default is None:
                self.fail(field, "is missing")
            return default or 0
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(field, f"{value!r} is not a whole number of at least 1")
            return 0
        return value

    def flag(self, field: str, default: bool) -> bool:
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(field, f"{value!r} is neither true nor false")
            return default
        return value

    def require(self, field: str, wanted: object, meaning: str) -> None:
        """A failure where the field is given with another value: `meaning` says what that would be."""
        value = self.config.get(field)
        if value is not None and value != wanted:
            self.fail(field, f"{value!r} means {meaning}, which is not supported")

    def refuse_quantized(self) -> None:
        if self.config.get("quantization_config"):
            self.fail("quantization_config", "the weights are already quantized, they cannot be trained or merged")


def _gpt2(reader: _Reader, family: Family) -> ModelShape:
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


def _gpt_neox(reader: _Reader, family: Family) -> ModelShape:
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


def _opt(reader: _Reader, family: Family) -> ModelShape:
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


_POSITIONS = {
    "llama": 2048,
    "mistral": 131_072,
    "qwen2": 32_768,
    "qwen3": 32_768,
    "gemma": 8192,
    "phi": 2048,
    "phi3": 4096,
}
_WINDOWS = {"mistral": 4096, "qwen2": 4096, "qwen3": 4096, "phi3": None}
_KV_HEADS = {"mistral": 8, "gemma": 16}  # where the class has a number of its own, not the number of heads
_HEAD_DIM = {"qwen3": 128, "gemma": 256}


def _rotary(reader: _Reader, family: Family) -> ModelShape:
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
        query_key_norm=family == "qwen3" or (family == "phi" and reader.flag("qk_layernorm", False)),
        window=_window(reader, family),
    )


def _window(reader: _Reader, family: Family) -> int | None:
    """Qwen has a width that only `use_sliding_window` makes one, and then in the upper layers; an absent width is no null."""
    config = reader.config
    if family not in _WINDOWS or ("sliding_window" in config and config["sliding_window"] is None):
        return None
    if family in ("qwen2", "qwen3") and not (reader.flag("use_sliding_window", False) and _upper_layers_slide(reader)):
        return None
    return reader.count("sliding_window", _WINDOWS[family]) if "sliding_window" in config else _WINDOWS[family]


def _upper_layers_slide(reader: _Reader) -> bool:
    kinds = reader.config.get("layer_types")
    if isinstance(kinds, Sequence):
        return "sliding_attention" in kinds
    below = reader.config.get("max_window_layers", 28)
    return isinstance(below, int) and below < reader.count("num_hidden_layers")


_READERS = {"gpt2": _gpt2, "gpt_neox": _gpt_neox, "opt": _opt, **dict.fromkeys(_POSITIONS, _rotary)}


def block_linears(shape: ModelShape) -> tuple[Linear, ...]:
    """The weight matrices of one block, in the order of the forward pass, under the names transformers gives them."""
    hidden, ffn = shape.hidden, shape.ffn
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    names, qkv_bias, mlp_bias = _NAMES.get(shape.family, _GATED_NAMES), shape.attention_bias, shape.mlp_bias
    into_heads = [query + 2 * key_value] if len(names.attention) == 1 else [query, key_value, key_value]
    into_mlp = [2 * ffn if shape.gated else ffn] if len(names.mlp) == 1 else [ffn, ffn]
    rows = [
        *((name, hidden, outputs, qkv_bias, False) for name, outputs in zip(names.attention, into_heads, strict=True)),
        (names.attention_out, query, hidden, shape.out_bias, True),
        *((name, hidden, outputs, mlp_bias, False) for name, outputs in zip(names.mlp, into_mlp, strict=True)),
        (names.mlp_out, ffn, hidden, mlp_bias, True),
    ]
    return tuple(
        Linear(name=name, inputs=inputs, outputs=outputs, bias=bias, row=row) for name, inputs, outputs, bias, row in rows
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """Matrices of a block: one name where a family keeps several in one."""

    attention: tuple[str, ...]
    attention_out: str
    mlp: tuple[str, ...]
    mlp_out: str


_QKV = ("q_proj", "k_proj", "v_proj")
_GATED_NAMES = _Names(attention=_QKV, attention_out="o_proj", mlp=("gate_proj", "up_proj"), mlp_out="down_proj")
_NAMES: dict[Family, _Names] = {
    "phi": _Names(attention=_QKV, attention_out="dense", mlp=("fc1",), mlp_out="fc2"),
    "phi3": _Names(attention=("qkv_proj",), attention_out="o_proj", mlp=("gate_up_proj",), mlp_out="down_proj"),
    "gpt2": _Names(attention=("c_attn",), attention_out="c_proj", mlp=("c_fc",), mlp_out="c_proj"),
    "gpt_neox": _Names(attention=("query_key_value",), attention_out="dense", mlp=("dense_h_to_4h",), mlp_out="dense_4h_to_h"),
    "opt": _Names(attention=_QKV, attention_out="out_proj", mlp=("fc1",), mlp_out="fc2"),
}
