"""Parameter counts, against the numbers that the models' publishers state."""

from __future__ import annotations

import pytest

from launcher.plan.known_shapes import KNOWN_CONFIGS
from launcher.plan.parameters import (
    active_parameters,
    adapted_linears,
    block_parameters,
    block_sizes,
    causal_parameters,
    lora_parameters,
    quantized_weights,
    reward_parameters,
)
from launcher.plan.shape import shape_from_config, shape_of_new
from launcher.spec.model import Lora, NewModel

PUBLISHED = {
    "NousResearch/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-xl": 1_557_611_200,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "tiiuae/falcon-7b": 6_921_720_704,
    "tiiuae/falcon-40b": 41_303_293_952,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_well_known_model_has_its_published_number_of_parameters(name):
    assert causal_parameters(shape_from_config(KNOWN_CONFIGS[name], file=name)) == PUBLISHED[name]


def test_every_well_known_config_is_complete():
    for name, config in KNOWN_CONFIGS.items():
        assert shape_from_config(config, file=name).positions >= 1024


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),
        ("Qwen/Qwen1.5-MoE-A2.7B", 2.7),
        ("Qwen/Qwen3-30B-A3B", 3.35),  # 3.3 on its page
        ("tiiuae/falcon-40b", 41.3),
        ("meta-llama/Llama-3.1-8B", 8.03),
    ],
)
def test_a_token_passes_as_many_parameters_as_the_model_card_says(name, billions):
    active = active_parameters(shape_from_config(KNOWN_CONFIGS[name], file=name))
    assert active / 1e9 == pytest.approx(billions, rel=0.01)


# Two blocks with six experts of 32 columns, of which a token passes two, and one block with an MLP of 96 columns.
MIXED = {
    "model_type": "qwen3_moe",
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [1],
}


def test_blocks_with_and_without_experts_are_counted_each():
    shape = shape_from_config(MIXED, file="config.json")
    attention, norms, expert = 4 * 64 * 64, 2 * 64 + 2 * 16, 3 * 64 * 32
    sparse, dense = attention + norms + 6 * expert + 6 * 64, attention + norms + 3 * 64 * 96
    assert block_sizes(shape) == (sparse, dense, sparse)
    assert block_parameters(shape) == sparse
    assert causal_parameters(shape) == 2 * sparse + dense + 2 * 1000 * 64 + 64
    assert causal_parameters(shape) - active_parameters(shape) == 2 * 4 * expert


def test_tensor_ranks_share_the_columns_of_every_expert_and_each_has_the_router():
    shape = shape_from_config(MIXED, file="config.json")
    whole, half = block_sizes(shape), block_sizes(shape, tp=2)
    norms, router = 2 * 64 + 2 * 16, 6 * 64
    assert [2 * part - size for part, size in zip(half, whole, strict=True)] == [norms + router, norms, norms + router]


@pytest.fixture
def tiny():
    return shape_of_new(NewModel(family="llama", layers=2, hidden=64, heads=4, ffn=176, positions=512), 2048)


def test_the_embedded_default_has_the_size_that_was_measured(tiny):
    assert causal_parameters(tiny) == 231_744
    assert reward_parameters(tiny) == 231_808


def test_an_untied_head_is_counted_and_a_reward_model_has_none(tiny):
    untied = shape_of_new(NewModel(family="llama", layers=2, hidden=64, heads=4, ffn=176, positions=512, tied=False), 2048)
    assert causal_parameters(untied) - causal_parameters(tiny) == 2048 * 64
    assert reward_parameters(untied) == reward_parameters(tiny)


def test_lora_parameters_are_rank_times_inputs_and_outputs(tiny):
    # 2 blocks, rank 8: four attention matrices of 64 + 64, three MLP matrices of 64 + 176
    assert lora_parameters(tiny, Lora(rank=8)) == 2 * 8 * (4 * 128 + 3 * 240)


def test_lora_on_named_modules_counts_only_those(tiny):
    adapter = Lora(rank=8, targets=("q_proj", "model.layers.0.self_attn.v_proj"))
    assert [linear.name for linear in adapted_linears(tiny, adapter)] == ["q_proj", "v_proj"]


def test_nf4_packs_the_matrices_of_the_blocks_only(tiny):
    assert quantized_weights(tiny) == 2 * (4 * 64 * 64 + 3 * 64 * 176)
