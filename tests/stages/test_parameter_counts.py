"""Our parameter counts against the models that transformers and peft build, on the meta device: no memory, no weights."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from launcher.plan.known_shapes import KNOWN_CONFIGS
from launcher.plan.parameters import (
    active_parameters,
    block_sizes,
    causal_parameters,
    lora_parameters,
    quantized_weights,
    reward_parameters,
)
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


SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
MIXTRAL = SIZES | {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 5}
QWEN2_MOE = SIZES | {
    "model_type": "qwen2_moe",
    "num_key_value_heads": 2,
    "num_experts": 7,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 72,
}
QWEN3_MOE = SIZES | {
    "model_type": "qwen3_moe",
    "num_key_value_heads": 1,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
}
FALCON = SIZES | {"model_type": "falcon"}
NEW_FALCON = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
PLANNED_ONLY = {
    "falcon": FALCON,
    "falcon, untied": FALCON | {"tie_word_embeddings": False},
    "falcon, biases and alibi": FALCON | {"bias": True, "alibi": True},
    "falcon, as many key/value heads": FALCON | {"multi_query": False, "ffn_hidden_size": 100},
    "falcon, key/value heads that the old one does not read": FALCON | {"num_kv_heads": 2},
    "falcon, one after the other": FALCON | {"parallel_attn": False, "alibi": True},
    "falcon, two norms": FALCON | {"num_ln_in_parallel_attn": 2},
    "new falcon": NEW_FALCON,
    "new falcon, untied with biases": NEW_FALCON | {"tie_word_embeddings": False, "bias": True},
    "new falcon, one norm": NEW_FALCON | {"num_ln_in_parallel_attn": 1},
    "new falcon, all heads": FALCON | {"new_decoder_architecture": True},
    "mixtral": MIXTRAL,
    "mixtral, tied": MIXTRAL | {"tie_word_embeddings": True, "num_experts_per_tok": 1},
    "mixtral, wide heads": MIXTRAL | {"head_dim": 24, "num_key_value_heads": 4},
    "mixtral, the other name": {**MIXTRAL, "num_local_experts": None, "num_experts": 3},
    "mixtral, defaults": SIZES | {"model_type": "mixtral", "num_attention_heads": 8},
    "qwen2_moe": QWEN2_MOE,
    "qwen2_moe, tied without biases": QWEN2_MOE | {"tie_word_embeddings": True, "qkv_bias": False},
    "qwen2_moe, every second": QWEN2_MOE | {"decoder_sparse_step": 2},
    "qwen2_moe, some listed": QWEN2_MOE | {"mlp_only_layers": [0, 2], "num_experts_per_tok": 2},
    "qwen2_moe, wide heads": QWEN2_MOE | {"head_dim": 32},
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe, tied with biases": QWEN3_MOE | {"tie_word_embeddings": True, "attention_bias": True},
    "qwen3_moe, wide heads": QWEN3_MOE | {"head_dim": 32, "norm_topk_prob": True},
    "qwen3_moe, steps and listed": QWEN3_MOE | {"num_hidden_layers": 7, "decoder_sparse_step": 3, "mlp_only_layers": [5, 9]},
    "qwen3_moe, no block with experts": QWEN3_MOE | {"mlp_only_layers": [0, 1, 2]},
}


@pytest.mark.parametrize("name", PLANNED_ONLY)
def test_families_that_are_only_planned_for_are_counted_as_exactly(name):
    config = {key: value for key, value in PLANNED_ONLY[name].items() if value is not None}
    shape = shape_from_config(config, file="config.json")
    causal = built(config, AutoModelForCausalLM)
    assert causal_parameters(shape) == count(causal)
    assert reward_parameters(shape) == count(built(config, AutoModelForSequenceClassification, num_labels=1))
    blocks = causal.transformer.h if shape.family == "falcon" else causal.model.layers
    assert block_sizes(shape) == tuple(count(block) for block in blocks)
    stacks = sum(parameter.numel() for name, parameter in causal.named_parameters() if ".experts." in name)
    assert count(causal) - active_parameters(shape) == stacks * (shape.experts - shape.experts_per_token) // (
        shape.experts or 1
    )


@pytest.mark.parametrize(
    "name",
    [
        "mistralai/Mixtral-8x7B-v0.1",
        "Qwen/Qwen1.5-MoE-A2.7B",
        "Qwen/Qwen3-30B-A3B",
        "tiiuae/falcon-7b",
        "tiiuae/falcon-40b",
        "meta-llama/Llama-3.1-405B",
    ],
)
def test_a_large_model_that_is_only_planned_for_is_counted_as_transformers_builds_it(name):
    config = KNOWN_CONFIGS[name]
    assert causal_parameters(shape_from_config(config, file=name)) == count(built(dict(config), AutoModelForCausalLM))


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


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("config", [FALCON | {"bias": True}, NEW_FALCON], ids=["falcon", "new falcon"])
@pytest.mark.parametrize("targets", ["all-linear", ("query_key_value", "dense_4h_to_h")])
def test_adapters_of_falcon_have_the_size_that_peft_gives_them(config, targets):
    lora = LoraConfig(r=5, target_modules=targets if targets == "all-linear" else list(targets), task_type="CAUSAL_LM")
    adapted = get_peft_model(built(config, AutoModelForCausalLM), lora)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert lora_parameters(shape_from_config(config, file="config.json"), Lora(rank=5, targets=targets)) == trained


# peft names patterns of the gate and up matrices that it then finds inside the stack, and says that it did not find them.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:The following:RuntimeWarning")
@pytest.mark.parametrize(("config", "adapts_experts"), [(MIXTRAL, True), (QWEN2_MOE, False), (QWEN3_MOE, True)])
def test_peft_adapts_the_experts_of_some_families_only_so_none_are_planned(config, adapts_experts):
    model = get_peft_model(
        built(config, AutoModelForCausalLM), LoraConfig(r=5, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(".experts." in name for name in trained) == adapts_experts


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
        {"model_type": "mixtral"},
        {"model_type": "mixtral", "sliding_window": 8},
        *(
            {"model_type": family, "moe_intermediate_size": 24, "num_experts": 8, **more}
            for family in ("qwen2_moe", "qwen3_moe")
            for more in ({"sliding_window": 8}, {"use_sliding_window": True}, {"use_sliding_window": True, "sliding_window": 8})
        ),
        {"model_type": "qwen2_moe", "moe_intermediate_size": 24, "use_sliding_window": True, "max_window_layers": 0},
    ],
)
def test_windows_are_those_that_transformers_gives_to_a_layer(config):
    sizes = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    full = {**sizes, "intermediate_size": 96, "pad_token_id": 0, **config}
    [*layers] = built(full, AutoModelForCausalLM).model.layers
    of_config = None if config["model_type"] == "qwen2_moe" else layers[0].self_attn.config.sliding_window
    windows = {getattr(layer.self_attn, "sliding_window", of_config) for layer in layers} - {None}
    ours = shape_from_config(full, file="config.json").window
    assert windows == ({ours} if ours else set())
