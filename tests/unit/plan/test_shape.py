"""config.json -> ModelShape: defaults, and every broken field named at once."""

from __future__ import annotations

import pytest

from launcher.errors import LauncherError
from launcher.plan.shape import FAMILIES, PLANNED_FAMILIES, block_linears, nearest_trained, shape_from_config, shape_of_new
from launcher.spec.model import NewModel

GOOD = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 160,
}


def problems(config: dict[str, object]) -> str:
    with pytest.raises(LauncherError) as caught:
        shape_from_config(config, file="model/config.json")
    return caught.value.text()


def test_absent_fields_take_the_defaults_of_transformers():
    shape = shape_from_config(GOOD, file="config.json")
    assert (shape.kv_heads, shape.head_dim, shape.positions, shape.tied) == (4, 16, 2048, False)
    assert {shape.attention_bias, shape.out_bias, shape.mlp_bias} == {False}


def test_an_unknown_family_is_refused_with_the_families_that_work():
    assert problems(GOOD | {"model_type": "gemma2"}) == (
        "model/config.json [E212] model_type: 'gemma2' is not a family that can be planned "
        "(llama, mistral, qwen2, qwen3, gemma, phi, phi3, gpt2, gpt_neox, opt, falcon, mixtral, qwen2_moe, qwen3_moe)\n"
        "  hint: use a model of one of these families: "
        "llama, mistral, qwen2, qwen3, gemma, phi, phi3, gpt2, gpt_neox, opt, falcon, mixtral, qwen2_moe, qwen3_moe"
    )


def test_only_another_spelling_is_taken_for_a_mistake_another_model_never():
    assert problems(GOOD | {"model_type": "GPT-NeoX"}).endswith("hint: did you mean gpt_neox?")
    assert not any("did you mean" in problems(GOOD | {"model_type": name}) for name in ("gemma2", "qwen25", "phi4", "gpt_neo"))


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("num_hidden_layers", 1000),
        ("num_attention_heads", 1024),
        ("num_key_value_heads", 1024),
        ("hidden_size", 2**20),
        ("intermediate_size", 2**20),
        ("vocab_size", 10**7),
        ("max_position_embeddings", 2**30),
        ("head_dim", 2**20),
    ],
)
def test_a_number_that_no_model_has_is_refused_before_anything_is_counted_from_it(field, most):
    for value in (most + 1, 10**12, 10**400):
        assert f"[E213] {field}: " in (text := problems(GOOD | {field: value}))
        assert f"is more than any model has: at most {most}" in text


def test_heads_without_a_width_of_their_own_have_to_divide_the_model_and_null_is_none():
    assert "hidden_size: 64 is not a multiple of the 5" in problems(GOOD | {"num_attention_heads": 5, "head_dim": None})
    assert shape_from_config(GOOD | {"num_attention_heads": 5, "head_dim": 16}, file="config.json").head_dim == 16


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"layer_types": "sliding"}, "layer_types: 'sliding' is not a list of names"),
        ({"layer_types": [{}]}, "layer_types: [{}] is not a list of names"),
        ({"sliding_window": 0}, "sliding_window: 0 is not a whole number of at least 1"),
        ({"max_window_layers": "x"}, "max_window_layers: 'x' is not a whole number"),
    ],
)
def test_windows_are_read_or_refused(change, what):
    assert what in problems(GOOD | {"model_type": "qwen2", "use_sliding_window": True} | change)


def test_a_config_without_model_type_is_refused():
    assert "[E212] model_type: is missing" in problems({key: GOOD[key] for key in GOOD if key != "model_type"})


def test_every_broken_field_is_named_at_once():
    text = problems(GOOD | {"hidden_size": "64", "num_hidden_layers": 0, "vocab_size": None, "tie_word_embeddings": 1})
    assert [line.split("] ")[1] for line in text.splitlines() if "[E213]" in line] == [
        "hidden_size: '64' is not a whole number of at least 1",
        "vocab_size: is missing",
        "num_hidden_layers: 0 is not a whole number of at least 1",
        "tie_word_embeddings: 1 is neither true nor false",
    ]


def test_true_is_not_a_count():
    assert "num_attention_heads: True is not a whole number" in problems(GOOD | {"num_attention_heads": True})


def test_heads_that_do_not_divide_the_width_are_refused():
    assert "hidden_size: 64 is not a multiple of the 5 attention heads" in problems(GOOD | {"num_attention_heads": 5})


def test_kv_heads_that_do_not_divide_the_heads_are_refused():
    assert "num_key_value_heads: 3 does not divide the 4 attention heads" in problems(GOOD | {"num_key_value_heads": 3})


def test_a_model_that_is_quantized_already_is_refused():
    assert "already quantized" in problems(GOOD | {"quantization_config": {"bits": 4}})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_of_every_family_has_the_shape_that_was_asked(family):
    kv_heads = None if family in ("gpt2", "gpt_neox", "opt") else 2
    new = NewModel(family=family, layers=3, hidden=128, heads=4, kv_heads=kv_heads, positions=256, tied=False)
    shape = shape_of_new(new, 1000)
    assert (shape.family, shape.vocab, shape.hidden, shape.layers, shape.heads) == (family, 1000, 128, 3, 4)
    assert (shape.kv_heads, shape.positions, shape.tied, shape.head_dim) == (kv_heads or 4, 256, False, 32)
    assert shape.ffn % 64 == 0
    assert shape.ffn > shape.hidden


FALCON = GOOD | {"model_type": "falcon"}
MIXTRAL = GOOD | {"model_type": "mixtral", "num_key_value_heads": 2}
QWEN2_MOE = GOOD | {"model_type": "qwen2_moe", "num_key_value_heads": 2, "moe_intermediate_size": 48, "num_hidden_layers": 6}
QWEN3_MOE = QWEN2_MOE | {"model_type": "qwen3_moe"}


@pytest.mark.parametrize(
    ("more", "kv_heads", "norms"),
    [
        ({}, 1, 1),
        ({"multi_query": False}, 4, 1),
        ({"multi_query": False, "num_kv_heads": 2}, 4, 1),
        ({"parallel_attn": False}, 1, 2),
        ({"num_ln_in_parallel_attn": 2}, 1, 2),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2, 2),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, 4, 1),
    ],
)
def test_falcon_has_the_heads_and_norms_of_its_architecture(more, kv_heads, norms):
    shape = shape_from_config(FALCON | more, file="config.json")
    assert (shape.kv_heads, shape.norms_per_block, shape.ffn, shape.tied) == (kv_heads, norms, 256, True)


def test_an_expert_is_as_wide_as_mixtrals_mlp_and_a_token_passes_two():
    shape = shape_from_config(MIXTRAL, file="config.json")
    assert (shape.experts, shape.experts_per_token, shape.expert_ffn, shape.ffn) == (8, 2, 160, 320)
    assert (shape.dense_layers, shape.shared_ffn, shape.window, shape.tied) == (0, 0, None, False)


def test_a_token_passes_the_shared_expert_too():
    shape = shape_from_config(QWEN2_MOE | {"shared_expert_intermediate_size": 96}, file="config.json")
    assert (shape.experts, shape.experts_per_token, shape.ffn, shape.attention_bias) == (60, 4, 4 * 48 + 96, True)


@pytest.mark.parametrize(
    ("more", "dense"),
    [
        ({}, ()),
        ({"mlp_only_layers": []}, ()),
        ({"mlp_only_layers": [0, 5, 9]}, (0, 5)),
        ({"decoder_sparse_step": 2}, (0, 2, 4)),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [2]}, (0, 1, 2, 3, 4)),
    ],
)
@pytest.mark.parametrize("config", [QWEN2_MOE, QWEN3_MOE], ids=["qwen2_moe", "qwen3_moe"])
def test_blocks_without_experts_are_those_that_are_listed_or_between_the_steps(config, more, dense):
    shape = shape_from_config(config | more, file="config.json")
    assert (shape.dense_blocks, shape.dense_layers) == (dense, len(dense))
    assert [shape.has_experts(block) for block in range(6)] == [block not in dense for block in range(6)]


def test_the_widest_block_says_how_many_columns_a_token_passes():
    wide = QWEN3_MOE | {"intermediate_size": 1000, "num_experts_per_tok": 2}
    assert shape_from_config(wide, file="config.json").ffn == 96
    assert shape_from_config(wide | {"mlp_only_layers": [1]}, file="config.json").ffn == 1000
    assert shape_from_config(wide | {"mlp_only_layers": list(range(6)), "intermediate_size": 64}, file="config.json").ffn == 64


def test_experts_are_counted_under_both_names_that_transformers_has_for_them():
    for config, name in ((MIXTRAL, "num_experts"), (QWEN3_MOE, "num_local_experts")):
        assert shape_from_config(config | {name: 9}, file="config.json").experts == 9


def test_broken_fields_of_experts_are_named():
    text = problems(
        QWEN3_MOE | {"num_experts": 4, "mlp_only_layers": "0", "decoder_sparse_step": 0, "moe_intermediate_size": None}
    )
    assert [line.split("] ")[1] for line in text.splitlines() if "[E213]" in line] == [
        "num_experts_per_tok: 8 is more than the 4 experts",
        "moe_intermediate_size: is missing",
        "decoder_sparse_step: 0 is not a whole number of at least 1",
        "mlp_only_layers: '0' is not a list of whole numbers",
    ]


def test_falcons_key_value_heads_are_named_as_its_config_names_them():
    text = problems(FALCON | {"new_decoder_architecture": True, "num_kv_heads": 3})
    assert "num_kv_heads: 3 does not divide the 4 attention heads" in text


def test_a_family_that_is_only_planned_for_names_one_that_can_be_trained():
    untrained = {family: nearest_trained(family) for family in PLANNED_FAMILIES if family not in FAMILIES}
    assert untrained == {"falcon": "gpt_neox", "mixtral": "mistral", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3"}
    assert [nearest_trained(family) for family in FAMILIES] == list(FAMILIES)
    assert not shape_from_config(MIXTRAL, file="config.json").trainable
    assert shape_from_config(GOOD, file="config.json").trainable


MISTRAL = GOOD | {"model_type": "mistral", "num_key_value_heads": 4}
QWEN = GOOD | {"model_type": "qwen2"}


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (GOOD | {"sliding_window": 8}, None),
        (MISTRAL, 4096),
        (MISTRAL | {"sliding_window": None}, None),
        (MISTRAL | {"sliding_window": 8}, 8),
        (GOOD | {"model_type": "phi3"}, None),
        (GOOD | {"model_type": "phi3", "sliding_window": 2047}, 2047),
        (QWEN | {"sliding_window": 8}, None),
        (QWEN | {"use_sliding_window": True, "sliding_window": 8}, None),
        (QWEN | {"use_sliding_window": True, "max_window_layers": 1}, 4096),
        (QWEN | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, 8),
        (QWEN | {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]}, 4096),
        (QWEN | {"use_sliding_window": True, "max_window_layers": 1, "layer_types": ["full_attention"] * 2}, None),
        (FALCON | {"sliding_window": 8}, None),
        (MIXTRAL | {"sliding_window": 8}, 8),
        (MIXTRAL | {"sliding_window": None}, None),
        (QWEN2_MOE | {"sliding_window": 8}, None),
        (QWEN2_MOE | {"use_sliding_window": True}, 4096),
        (QWEN2_MOE | {"use_sliding_window": True, "max_window_layers": 0}, None),
        (QWEN2_MOE | {"use_sliding_window": True, "layer_types": ["full_attention"] * 6}, None),
        (QWEN3_MOE | {"sliding_window": 8}, None),
        (QWEN3_MOE | {"use_sliding_window": True, "sliding_window": 8}, 8),
        (QWEN3_MOE | {"use_sliding_window": True, "sliding_window": None}, None),
    ],
)
def test_a_sliding_window_is_one_that_a_layer_really_has(config, window):
    assert shape_from_config(config, file="config.json").window == window


def test_the_matrices_of_a_block_are_named_as_transformers_names_them():
    shape = shape_from_config(GOOD | {"num_key_value_heads": 2}, file="config.json")
    assert [(linear.name, linear.inputs, linear.outputs) for linear in block_linears(shape)] == [
        ("q_proj", 64, 64),
        ("k_proj", 64, 32),
        ("v_proj", 64, 32),
        ("o_proj", 64, 64),
        ("gate_proj", 64, 160),
        ("up_proj", 64, 160),
        ("down_proj", 160, 64),
    ]


def names(config, block=0):
    return [linear.name for linear in block_linears(shape_from_config(config, file="config.json"), block)]


def test_experts_are_no_matrices_of_their_own_but_the_shared_one_is():
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    mlp = ["gate_proj", "up_proj", "down_proj"]
    assert names(MIXTRAL) == attention
    assert names(QWEN2_MOE) == [*attention, *mlp, "shared_expert_gate"]
    assert names(QWEN3_MOE | {"mlp_only_layers": [1]}, block=0) == attention
    assert names(QWEN3_MOE | {"mlp_only_layers": [1]}, block=1) == attention + mlp
    assert names(FALCON) == ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
