"""The Hugging Face decoders that we cut ourselves: where their parts are, and how each matrix is split over tensor ranks.

A table, no code of a family: a new family is a new entry, proved by tests/stages/equal_runs. transformers publishes tensor
plans too (`base_model_tp_plan`), but none for GPT-2 and OPT, and for Phi-3 one that gathers after each matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Paths inside the base model (`model.base_model`); several names of one part: the first that exists."""

    embedding: str = "embed_tokens"
    positions: str | None = None  # learned positions, added to the embedding
    entry: tuple[str, ...] = ()  # what works between embedding and first block, in the first stage only
    blocks: str = "layers"
    mlp: str | None = "mlp"  # the block's MLP as a module; None: its matrices stand in the block itself
    exit: tuple[str, ...] = ("norm",)  # what works behind the last block, in the last stage only
    column: tuple[str, ...] = ()  # matrices split by output: each rank computes its own heads or MLP columns
    row: tuple[str, ...] = ()  # matrices split by input: each rank adds a partial sum
    fused: dict[str, str] | None = None  # column matrices that hold several: how (`qkv` or `halves`)
    stored: tuple[tuple[str, str], ...] = ()  # start of a name in the model -> in folders, where transformers renames it
    shared: tuple[str, ...] = ()  # replicated weights applied to split heads: their gradients are summed over the ranks


_GATED = Family(
    column=("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
    row=("o_proj", "down_proj"),
    shared=("q_norm", "k_norm"),
)
FAMILIES: dict[str, Family] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma": _GATED,
    "phi": Family(
        entry=("embed_dropout",),
        exit=("final_layernorm",),
        column=("q_proj", "k_proj", "v_proj", "fc1"),
        row=("dense", "fc2"),
        shared=("q_layernorm", "k_layernorm"),
    ),
    "phi3": Family(
        column=("qkv_proj", "gate_up_proj"),
        row=("o_proj", "down_proj"),
        fused={"qkv_proj": "qkv", "gate_up_proj": "halves"},
    ),
    "gpt2": Family(
        embedding="wte",
        positions="wpe",
        entry=("drop",),
        blocks="h",
        exit=("ln_f",),
        column=("attn.c_attn", "mlp.c_fc"),
        row=("attn.c_proj", "mlp.c_proj"),
        fused={"attn.c_attn": "qkv"},
    ),
    "gpt_neox": Family(
        embedding="embed_in",
        entry=("emb_dropout",),
        exit=("final_layer_norm",),
        stored=(("lm_head.", "embed_out."),),
        column=("query_key_value", "dense_h_to_4h"),  # heads are stored one after the other, each with its q, k and v
        row=("attention.dense", "dense_4h_to_h"),
    ),
    "opt": Family(
        embedding="decoder.embed_tokens",
        positions="decoder.embed_positions",
        blocks="decoder.layers",
        mlp=None,
        exit=("decoder.final_layer_norm",),
        column=("q_proj", "k_proj", "v_proj", "fc1"),
        row=("out_proj", "fc2"),
    ),
}


def family_of(config: PretrainedConfig) -> Family:
    """KeyError for a family that is not in the table: the plan refuses those before anything starts."""
    return FAMILIES[config.model_type]


def stored_name(config: PretrainedConfig, name: str) -> str:
    """What model folders call the weight `name`."""
    family = FAMILIES.get(config.model_type)
    for inside, outside in family.stored if family else ():
        if name.startswith(inside):
            return outside + name.removeprefix(inside)
    return name


def initial_std(config: PretrainedConfig) -> float:
    """Of the weights that a new head is drawn with. OPT has its own name for it."""
    return getattr(config, "initializer_range", None) or config.init_std


def heads_of(config: PretrainedConfig) -> tuple[int, int, int]:
    """(query heads, key/value heads, width of a head)."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, width
