"""Our parameter counts against the models that transformers and peft build, on the meta device: no memory, no weights."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from launcher.plan.parameters import causal_parameters, lora_parameters, quantized_weights, reward_parameters
from launcher.plan.shape import block_linears, shape_from_config, shape_of_new
from launcher.spec.model import Lora, NewModel
from launcher.spec.new_model import new_model_config

VOCAB = 1003  # no round number: a count that multiplies the wrong sizes would be off
CASES = [
    (family, tied, kv_heads)
    for family in ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3")
    for tied, kv_heads in ((True, 4), (False, 2), (True, 1))
] + [(family, tied, None) for family in ("gpt2", "gpt_neox", "opt") for tied in (True, False)]


def built(config: dict[str, object], kind: type, **changes: object) -> torch.nn.Module:
    config = {**config, **changes}
    with torch.device("meta"):
        return kind.from_config(AutoConfig.for_model(config.pop("model_type"), **config))


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("family", "tied", "kv_heads"), CASES)
def test_counts_are_those_of_the_real_model(family, tied, kv_heads):
    new = NewModel(family=family, layers=3, hidden=64, heads=4, kv_heads=kv_heads, ffn=176, positions=48, tied=tied)
    config, shape = new_model_config(new, VOCAB), shape_of_new(new, VOCAB)
    assert causal_parameters(shape) == count(built(config, AutoModelForCausalLM))
    assert reward_parameters(shape) == count(built(config, AutoModelForSequenceClassification, num_labels=1))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 24},
        {"model_type": "mistral", "head_dim": 8},
        {"model_type": "qwen3", "attention_bias": True, "head_dim": 32},
        {"model_type": "gpt_neox", "attention_bias": False},
        {"model_type": "gemma", "attention_bias": True, "tie_word_embeddings": False},
        {"model_type": "phi", "qk_layernorm": True},
        {"model_type": "phi3", "head_dim": 24, "pad_token_id": 0, "eos_token_id": 0},
        {"model_type": "opt", "enable_bias": False, "ffn_dim": 96},
    ],
)
def test_biases_and_head_widths_of_a_config_are_counted(config):
    sizes = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    full = {**sizes, **config} | ({} if config["model_type"] in ("gpt_neox", "opt") else {"num_key_value_heads": 2})
    shape = shape_from_config(full, file="config.json")
    assert causal_parameters(shape) == count(built(full, AutoModelForCausalLM))


# peft 0.21 reads a name that transformers 5 has deprecated, and says of GPT-2's Conv1D what it then does by itself.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:fan_in_fan_out:UserWarning")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "phi", "phi3", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("targets", ["all-linear", "one"])
def test_adapters_have_the_size_that_peft_gives_them(family, targets):
    new = NewModel(family=family, layers=2, hidden=64, heads=4, ffn=96, positions=48)
    shape = shape_of_new(new, VOCAB)
    named = "all-linear" if targets == "all-linear" else (block_linears(shape)[0].name,)
    model = built(new_model_config(new, VOCAB), AutoModelForCausalLM)
    config = LoraConfig(r=5, target_modules=named if named == "all-linear" else list(named), task_type="CAUSAL_LM")
    trained = [parameter for parameter in get_peft_model(model, config).parameters() if parameter.requires_grad]
    assert lora_parameters(shape, Lora(rank=5, targets=named)) == sum(parameter.numel() for parameter in trained)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_nf4_packs_are_the_matrices_of_the_blocks(family):
    new = NewModel(family=family, layers=2, hidden=64, heads=4, ffn=96, positions=48)
    model = built(new_model_config(new, VOCAB), AutoModelForCausalLM)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and (".layers." in name or ".h." in name)]
    assert quantized_weights(shape_of_new(new, VOCAB)) == sum(matrix.numel() for matrix in matrices)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mistral"},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "phi3"},
        {"model_type": "phi3", "sliding_window": 8},
        *(
            {"model_type": family, **more}
            for family in ("qwen2", "qwen3")
            for more in (
                {"sliding_window": 8},
                {"use_sliding_window": True},
                {"use_sliding_window": True, "max_window_layers": 1},
                {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
            )
        ),
    ],
)
def test_windows_are_those_that_transformers_gives_to_a_layer(config):
    sizes = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    full = {**sizes, "intermediate_size": 96, "pad_token_id": 0, **config}
    [*layers] = built(full, AutoModelForCausalLM).model.layers
    windows = {getattr(layer.self_attn, "sliding_window", layer.self_attn.config.sliding_window) for layer in layers} - {None}
    ours = shape_from_config(full, file="config.json").window
    assert windows == ({ours} if ours else set())
