"""Blueprints against the models that transformers builds: families of no table exactly, and those of the tables as counted.

A blueprint of a known family says what the tables say of it: each proves the other.
"""

from __future__ import annotations

import json

import pytest

from launcher.plan.kept import kept_of_block
from launcher.plan.parameters import block_sizes, causal_parameters, reward_parameters
from launcher.plan.shape import ModelShape, block_linears, shape_from_blueprint, shape_of_new
from launcher.plan.tensors import tensors_of
from launcher.spec.model import Lora, NewModel
from launcher.spec.new_model import new_model_config
from tests.stages.harness import run_ranks
from tests.unit.cli.cases import BLUEPRINT

pytestmark = pytest.mark.ranks

SIZES = {
    "vocab_size": 1003,
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
PLAIN = {
    name: {"model_type": name}
    for name in ("olmo", "olmo2", "olmo3", "starcoder2", "stablelm", "granite", "glm", "glm4", "cohere", "nemotron")
}
UNKNOWN: dict[str, dict[str, object]] = PLAIN | {
    "smollm3": {"model_type": "smollm3"},
    "ernie4_5": {"model_type": "ernie4_5", "head_dim": 16},
    "seed_oss": {"model_type": "seed_oss", "head_dim": 16},
    "gemma3_text": {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 16},
    "arcee": {"model_type": "arcee", "mlp_bias": True, "tie_word_embeddings": True},
    "olmo2, tied": {"model_type": "olmo2", "tie_word_embeddings": True, "attention_bias": True},
    "stablelm, side by side": {"model_type": "stablelm", "use_parallel_residual": True, "use_qkv_bias": True},
}
NEW = {
    f"{family}, {kv_heads}": NewModel(
        family=family, layers=4, hidden=64, heads=4, kv_heads=kv_heads, ffn=176, positions=64, tied=kv_heads is None
    )
    for family, kv_heads in (
        *(
            (family, None)
            for family in ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt2", "gpt_neox", "opt")
        ),
        *((family, 2) for family in ("llama", "qwen3", "gemma", "phi3")),
    )
}
REFUSED = {
    "layers of other kinds": ("jamba", "it has layers of other kinds than attention over the row or a window of it"),
    "a state instead of attention": ("mamba", "it has layers of other kinds"),
    "chunks": ("llama4_text", "it has layers of other kinds"),
    "an encoder beside it": ("t5", "it has an encoder beside its decoder"),
    "an encoder": ("bert", "its attention sees the tokens to come"),
    "pictures": ("qwen2_vl", "it is made of several models, for pictures or sound beside text"),
    "experts": ("olmoe", "its blocks have experts or convolutions (mlp.experts.gate_up_proj)"),
    "experts in some blocks": ("deepseek_v3", "its blocks differ: "),
    "attention in two halves": ("diffllama", "a block calls the attention kernel 2 times, not once"),
    "no sdpa": ("bloom", "transformers has no sdpa attention for it"),
    "a name that nobody knows": ("olmo22", "has no such family; did you mean olmo2?"),
}


def made() -> dict[str, tuple[dict, dict]]:
    """Name -> blueprint, and what the real model has: its tensors, and its parameters with the head `score`. In a rank."""
    from launcher.train.blueprint import make_blueprint

    configs = {name: SIZES | config for name, config in UNKNOWN.items()}
    configs |= {name: new_model_config(new, 128) for name, new in NEW.items()}
    return {name: (make_blueprint(config, file="config.json"), _real(config)) for name, config in configs.items()}


def _real(config: dict[str, object]) -> dict[str, object]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    fields = {name: value for name, value in config.items() if name not in ("model_type", "dtype")}
    made = AutoConfig.for_model(config["model_type"], **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
        found: dict[str, object] = {"tensors": [(name, tuple(one.shape)) for name, one in model.named_parameters()]}
        if type(made) in AutoModelForSequenceClassification._model_mapping:
            made.num_labels = 1
            found["scoring"] = sum(one.numel() for one in AutoModelForSequenceClassification.from_config(made).parameters())
    return found


@pytest.fixture(scope="module")
def blueprints():
    [found] = run_ranks(made, world=1, timeout_s=600)
    return found


def shape_of(blueprints, name: str) -> ModelShape:
    return shape_from_blueprint(json.loads(json.dumps(blueprints[name][0])))


def elements(sizes) -> list[int]:
    products = []
    for size in sizes:
        product = 1
        for number in size:
            product *= number
        products.append(product)
    return products


@pytest.mark.parametrize("name", [*UNKNOWN, *NEW])
def test_counts_are_those_of_the_real_model_tensor_by_tensor(blueprints, name):
    told, real = blueprints[name]
    shape, sizes = shape_of(blueprints, name), [size for _, size in real["tensors"]]
    assert causal_parameters(shape) == sum(elements(sizes)) == told["parameters"]
    tensors = tensors_of(shape, "pretrain", None, stage=0, tp=1, pp=1)
    assert list(tensors.matrices) == elements(size for size in sizes if len(size) >= 2)
    assert list(tensors.vectors) == elements(size for size in sizes if len(size) < 2)
    assert block_sizes(shape) == (sum(elements(shape.blueprint.block)),) * shape.layers
    if told["scores"]:
        scoring = tensors_of(shape, "reward", None, stage=0, tp=1, pp=1)
        assert reward_parameters(shape) == real["scoring"] == sum(scoring.trained)


@pytest.mark.parametrize("name", NEW)
def test_of_a_known_family_it_says_what_the_tables_say(blueprints, name):
    measured, known = shape_of(blueprints, name), shape_of_new(NEW[name], 128)
    fields = ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "positions", "tied", "attention_bias")
    fields += ("out_bias", "mlp_bias", "norms_per_block", "query_key_norm", "window", "family")
    fields += ("gated", "layer_norm", "learned_positions", "head_bias", "trainable")
    different = {field for field in fields if getattr(measured, field) != getattr(known, field)}
    assert different == ({"trainable"} if known.family == "opt" else set())  # OPT's head reads its decoder past the base model
    assert set(block_linears(measured)) == set(block_linears(known))  # in which order, the tensors below tell
    adapter = Lora(rank=3)
    for kind, lora in (("pretrain", None), ("reward", None), ("sft", adapter), ("reward", adapter)):
        of_both = [tensors_of(shape, kind, lora, stage=0, tp=1, pp=1) for shape in (measured, known)]
        assert of_both[0] == of_both[1]
    for precision in ("fp32", "bf16", "fp16"):
        for eager in (False, True):
            for lora in (None, adapter, Lora(rank=5, dropout=0.1)):
                how = {"row_tokens": 48, "eager": eager, "adapter": lora}
                assert kept_of_block(measured, precision, **how) == kept_of_block(known, precision, **how)


def kept_twice() -> dict[str, tuple[list, list]]:
    """Family -> what a block keeps by fake tensors, and by real ones. In a rank."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from launcher.train.blueprint import built
    from launcher.train.blueprint_kept import kept_by_block

    found = {}
    for name in ("olmo2", "glm4", "nemotron", "gemma3_text", "cohere"):
        config = SIZES | UNKNOWN[name]

        def build(dtype, kernel, config=config):
            return built(config, 3, dtype=dtype, kernel=kernel)

        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = kept_by_block(build, "model.layers")
        found[name] = (fake, kept_by_block(build, "model.layers"))
    return found


def test_fake_tensors_keep_what_real_ones_keep():
    [found] = run_ranks(kept_twice, world=1, timeout_s=300)
    for fake, real in found.values():
        assert fake == real


def refusals() -> dict[str, str]:
    from launcher.errors import LauncherError
    from launcher.train.blueprint import make_blueprint

    configs = {name: SIZES | {"model_type": family} for name, (family, _) in REFUSED.items()}
    configs["code of its own"] = {"model_type": "chatglm", "auto_map": {"AutoModel": "modeling_chatglm.ChatGLM"}}
    configs["broken"] = SIZES | {"model_type": "olmo2", "hidden_size": "wide"}
    told = {}
    for name, config in configs.items():
        with pytest.raises(LauncherError) as caught:
            make_blueprint(config, file="config.json")
        told[name] = caught.value.text()
    return told


def test_what_is_no_decoder_of_alike_attention_blocks_is_refused_with_the_reason():
    [told] = run_ranks(refusals, world=1, timeout_s=300)
    for name, (family, why) in REFUSED.items():
        head = f"config.json [E212] model_type: {family!r} cannot be planned: "
        assert told[name].startswith(head), name
        assert why in told[name], told[name]
    assert "it needs code of its own (auto_map), which is never run here" in told["code of its own"]
    assert told["broken"].startswith("config.json [E213] Field 'hidden_size' expected int, got str (value: 'wide')")
    assert all("\n  hint: " in text for text in told.values())


def test_logits_that_are_changed_behind_the_head_are_seen(blueprints):
    changed = {name for name in UNKNOWN if not shape_of(blueprints, name).trainable}
    assert changed == {"granite", "cohere"}
    assert blueprints["granite"][0]["untrained"] == "its logits are changed behind the head"


def test_a_family_without_a_classifier_is_known_as_such(blueprints):
    without = {name for name, (_, real) in blueprints.items() if "scoring" not in real}
    assert without == {name for name, (told, _) in blueprints.items() if not told["scores"]}
    assert {"granite", "cohere", "ernie4_5"} <= without


def test_the_stored_blueprint_is_what_is_made_today():
    stored = json.loads(BLUEPRINT.read_text(encoding="utf-8"))
    [today] = run_ranks(_made_again, stored["config"], world=1)
    versions = ("transformers", "torch")
    assert {**today, **dict.fromkeys(versions)} == {**stored["blueprint"], **dict.fromkeys(versions)}


def _made_again(config: dict[str, object]) -> dict[str, object]:
    from launcher.train.blueprint import make_blueprint

    return json.loads(json.dumps(make_blueprint(config, file="config.json")))
