"""config.json -> ModelShape: defaults, and every broken field named at once."""

from __future__ import annotations

import pytest

from launcher.errors import LauncherError
from launcher.plan.shape import FAMILIES, block_linears, shape_from_config, shape_of_new
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
    assert problems(GOOD | {"model_type": "mixtral"}) == (
        "model/config.json [E212] model_type: 'mixtral' is not a family that can be planned "
        "(llama, mistral, qwen2, qwen3, gemma, phi, phi3, gpt2, gpt_neox, opt)\n  hint: did you mean mistral?"
    )


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
