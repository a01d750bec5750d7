"""Tiny models of every family that we cut ourselves: name → a Hugging Face folder. Four blocks, four heads, fp32, no dropout.

Biases and norms are drawn away from 0 and 1, or a lost bias or a norm that is left out would not show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.stages.runs import END, HIDDEN, PAD, VOCAB


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """`classes`: start of the transformers class names. `settings` go into the config."""

    family: str
    classes: str
    tied: bool
    settings: dict[str, object] = field(default_factory=dict)


SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = {"n_embd": HIDDEN, "n_layer": 4, "n_head": 4, "n_positions": 64}
OPT = {
    "hidden_size": HIDDEN,
    "ffn_dim": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": HIDDEN,
}


def gpt2(**settings: object) -> TinyModel:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    tied = bool(settings.get("tie_word_embeddings", True))
    return TinyModel(family="gpt2", classes="GPT2", tied=tied, settings=GPT2 | dropout | settings)


def phi(**settings: object) -> TinyModel:
    return TinyModel(family="phi", classes="Phi", tied=False, settings=SIZES | settings)


MODELS = {
    "llama": TinyModel(family="llama", classes="Llama", tied=False, settings=GROUPED),
    "llama tied": TinyModel(family="llama", classes="Llama", tied=True, settings=GROUPED),
    "mistral": TinyModel(family="mistral", classes="Mistral", tied=False, settings=GROUPED | {"sliding_window": None}),
    "mistral window": TinyModel(family="mistral", classes="Mistral", tied=False, settings=GROUPED | {"sliding_window": 8}),
    "qwen2": TinyModel(family="qwen2", classes="Qwen2", tied=True, settings=GROUPED),
    "qwen3": TinyModel(family="qwen3", classes="Qwen3", tied=False, settings=GROUPED | {"head_dim": 8}),
    "gemma": TinyModel(family="gemma", classes="Gemma", tied=True, settings=GROUPED | {"head_dim": 16}),
    "phi": phi(),
    "phi3": TinyModel(family="phi3", classes="Phi3", tied=False, settings=GROUPED | {"original_max_position_embeddings": 64}),
    "gpt2": gpt2(),
    "gpt2 untied": gpt2(tie_word_embeddings=False),
    "gpt_neox": TinyModel(family="gpt_neox", classes="GPTNeoX", tied=False, settings=SIZES),
    "opt": TinyModel(family="opt", classes="OPT", tied=True, settings=OPT | {"dropout": 0.0}),
    "gpt2 dropout": gpt2(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1),
    "phi dropout": phi(resid_pdrop=0.1, embd_pdrop=0.1, attention_dropout=0.1),
}


def causal_class(model: TinyModel) -> str:
    return "GPT2LMHeadModel" if model.classes == "GPT2" else f"{model.classes}ForCausalLM"


def import_families() -> None:
    """In the parent of the ranks: transformers loads a class when it is named, and each rank would pay for it."""
    import transformers

    for model in MODELS.values():
        for name in (causal_class(model), f"{model.classes}ForSequenceClassification"):
            getattr(transformers, name)


def write_models(folder: Path) -> None:
    """All of them, under their names. Runs in a forked rank."""
    for name in MODELS:
        _write(folder / name, MODELS[name])


def _write(folder: Path, tiny: TinyModel) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    tokens = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD}
    settings = {"tie_word_embeddings": tiny.tied} | tokens | tiny.settings
    model = getattr(transformers, causal_class(tiny))(getattr(transformers, f"{tiny.classes}Config")(**settings))
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            scale = "weight" in name and tiny.family != "gemma"  # Gemma's norms multiply by 1 + weight
            torch.nn.init.normal_(weight, float(scale), 0.05)
        weight.data = weight.data.bfloat16().float()  # a bf16 run starts from the same values
    model.save_pretrained(folder)
