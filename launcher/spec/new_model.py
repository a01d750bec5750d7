"""NewModel -> config.json: what transformers is told about a model that is drawn at random. Pure, used by both sides.

The control side counts its parameters (plan/shape.py), prepare draws it. Token ids are left empty: only the tokenizer knows
them, so prepare fills `bos_token_id`, `eos_token_id` and `pad_token_id` in.
"""

from __future__ import annotations

from launcher.spec.model import Family, NewModel

ARCHITECTURES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "opt": "OPTForCausalLM",
}

# MLP width / hidden width of published models: Llama-2 11008/4096, Mistral 14336/4096, Qwen2-0.5B 4864/896,
# Qwen3-8B 12288/4096, Gemma-2B 16384/2048, Phi-3-mini 8192/3072, the others 4.
_FFN_RATIO: dict[Family, float] = {
    "llama": 8 / 3,
    "mistral": 3.5,
    "qwen2": 16 / 3,
    "qwen3": 3,
    "gemma": 8,
    "phi": 4,
    "phi3": 8 / 3,
    "gpt2": 4,
    "gpt_neox": 4,
    "opt": 4,
}
_FFN_STEP = 64  # a width that trains in nf4 on a CPU too (E206)


def usual_ffn(family: Family, hidden: int) -> int:
    """Width of the MLP, rounded up to a multiple of 64."""
    return -(-int(hidden * _FFN_RATIO[family]) // _FFN_STEP) * _FFN_STEP


def new_model_config(new: NewModel, vocab: int) -> dict[str, object]:
    """The Hugging Face config.json of `new` with `vocab` embeddings. Dropout is 0: a dropped unit makes PPO's ratios wrong."""
    config: dict[str, object] = {
        "architectures": [ARCHITECTURES[new.family]],
        "model_type": new.family,
        "vocab_size": vocab,
        "tie_word_embeddings": new.tied,
        "dtype": "float32",
        "use_cache": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    fields = {"gpt2": _gpt2_fields, "opt": _opt_fields}.get(new.family, _common_fields)
    return config | fields(new)


def _gpt2_fields(new: NewModel) -> dict[str, object]:
    return {
        "n_embd": new.hidden,
        "n_layer": new.layers,
        "n_head": new.heads,
        "n_inner": new.ffn or usual_ffn(new.family, new.hidden),
        "n_positions": new.positions,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _opt_fields(new: NewModel) -> dict[str, object]:
    return {
        "hidden_size": new.hidden,
        "word_embed_proj_dim": new.hidden,
        "num_hidden_layers": new.layers,
        "num_attention_heads": new.heads,
        "ffn_dim": new.ffn or usual_ffn(new.family, new.hidden),
        "max_position_embeddings": new.positions,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
    }


def _common_fields(new: NewModel) -> dict[str, object]:
    fields: dict[str, object] = {
        "hidden_size": new.hidden,
        "num_hidden_layers": new.layers,
        "num_attention_heads": new.heads,
        "intermediate_size": new.ffn or usual_ffn(new.family, new.hidden),
        "max_position_embeddings": new.positions,
        "attention_dropout": 0.0,
    }
    if new.family == "gpt_neox":
        return fields | {"hidden_dropout": 0.0}
    fields |= {"num_key_value_heads": new.kv_heads or new.heads, "head_dim": new.hidden // new.heads}
    if new.family in ("phi", "phi3"):
        fields |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return fields | ({"sliding_window": None} if new.family in ("mistral", "phi3") else {})
