"""config.json -> ModelShape: the widths and counts of a model that decide its parameters and its memory.

DERIVE. Reads a parsed config, opens no file. Absent fields take the defaults of transformers' own config classes.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    @property
    def gated(self) -> bool:
        """SwiGLU: a third matrix in the MLP."""
        return self.family not in ("gpt2", "gpt_neox")

    @property
    def layer_norm(self) -> bool:
        """LayerNorm with a bias instead of RMSNorm."""
        return self.family in ("gpt2", "gpt_neox")

    @property
    def learned_positions(self) -> bool:
        return self.family == "gpt2"

    @property
    def query_key_norm(self) -> bool:
        return self.family == "qwen3"


def shape_from_config(config: Config, *, file: str) -> ModelShape:
    """The shape that `config` describes; LauncherError with every field that is missing or broken, named with `file`."""
    reader = _Reader(config, file)
    family = reader.family()
    if family is None:
        raise LauncherError(reader.problems)
    shape = _READERS[family](reader, family)
    reader.refuse_quantized()
    if shape.hidden and shape.heads and shape.hidden % shape.heads and "head_dim" not in config:
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


_POSITIONS = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}


def _gated(reader: _Reader, family: Family) -> ModelShape:
    hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    own_bias = reader.flag("attention_bias", False) if family in ("llama", "qwen3") else False
    return ModelShape(
        family=family,
        vocab=reader.count("vocab_size"),
        hidden=hidden,
        layers=reader.count("num_hidden_layers"),
        heads=heads,
        kv_heads=reader.count("num_key_value_heads", 8 if family == "mistral" else heads),
        head_dim=reader.count("head_dim", 128 if family == "qwen3" else hidden // max(1, heads)),
        ffn=reader.count("intermediate_size"),
        positions=reader.count("max_position_embeddings", _POSITIONS[family]),
        tied=reader.flag("tie_word_embeddings", False),
        attention_bias=family == "qwen2" or own_bias,
        out_bias=own_bias,
        mlp_bias=family == "llama" and reader.flag("mlp_bias", False),
    )


_READERS = {"llama": _gated, "mistral": _gated, "qwen2": _gated, "qwen3": _gated, "gpt2": _gpt2, "gpt_neox": _gpt_neox}


def block_linears(shape: ModelShape) -> tuple[Linear, ...]:
    """The weight matrices of one block, in the order of the forward pass, under the names transformers gives them."""
    hidden, ffn = shape.hidden, shape.ffn
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    qkv_bias, out_bias, mlp_bias = shape.attention_bias, shape.out_bias, shape.mlp_bias
    if shape.gated:
        rows = [
            ("q_proj", hidden, query, qkv_bias),
            ("k_proj", hidden, key_value, qkv_bias),
            ("v_proj", hidden, key_value, qkv_bias),
            ("o_proj", query, hidden, out_bias),
            ("gate_proj", hidden, ffn, mlp_bias),
            ("up_proj", hidden, ffn, mlp_bias),
            ("down_proj", ffn, hidden, mlp_bias),
        ]
    else:
        names = _FUSED_NAMES[shape.family]
        sizes = [(hidden, 3 * hidden, qkv_bias), (hidden, hidden, out_bias), (hidden, ffn, mlp_bias), (ffn, hidden, mlp_bias)]
        rows = [(name, *size) for name, size in zip(names, sizes, strict=True)]
    return tuple(Linear(name=name, inputs=inputs, outputs=outputs, bias=bias) for name, inputs, outputs, bias in rows)


_FUSED_NAMES = {
    "gpt2": ("c_attn", "c_proj", "c_fc", "c_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}
