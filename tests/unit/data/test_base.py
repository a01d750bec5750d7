"""The model that the first stage starts from: drawn once, or linked after a look at every file it needs."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("torch")

from safetensors.torch import load_file

from launcher.errors import LauncherError
from launcher.spec.model import NewModel
from launcher.train.base import draw_model, link_model, source_facts
from launcher.train.hub import model_folder

NEW = NewModel(family="llama", layers=1, hidden=32, heads=2, ffn=64, positions=64)


@pytest.fixture
def model(tokenizer, tmp_path):
    draw_model(NEW, tokenizer, vocab=420, seed=0, folder=tmp_path / "model")
    return tmp_path / "model"


def problem(folder):
    with pytest.raises(LauncherError) as caught:
        source_facts(folder)
    (found,) = caught.value.problems
    assert (found.code, found.where) == ("E546", "model.source")
    return found


def test_a_new_model_is_drawn_once_in_float32_with_the_tokenizers_ids(model, tokenizer, tmp_path):
    config = json.loads((model / "config.json").read_text())
    assert [config[name] for name in ("vocab_size", "pad_token_id", "eos_token_id")] == [420, 0, 1]
    weights = load_file(model / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
    assert draw_model(NEW, tokenizer, vocab=420, seed=0, folder=model) is True
    draw_model(NEW, tokenizer, vocab=420, seed=0, folder=tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_another_seed_or_a_damaged_file_draws_again(model, tokenizer):
    before = (model / "model.safetensors").read_bytes()
    assert draw_model(NEW, tokenizer, vocab=420, seed=1, folder=model) is False
    assert (model / "model.safetensors").read_bytes() != before
    (model / "model.safetensors").write_bytes(before[:-1])
    assert draw_model(NEW, tokenizer, vocab=420, seed=0, folder=model) is False
    assert (model / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox"])
def test_every_family_is_drawn_and_described(family, tokenizer, tmp_path):
    new = NewModel(family=family, layers=1, hidden=32, heads=2, positions=64)
    draw_model(new, tokenizer, vocab=420, seed=0, folder=tmp_path / "m")
    facts = source_facts(tmp_path / "m")
    assert (facts.positions, facts.embedding_rows, facts.end_ids, facts.notes) == (64, 420, {1}, ())


def test_a_source_is_linked_and_not_copied(model, tmp_path):
    for _ in range(2):
        link_model(model, tmp_path / "run/base/model")
        assert (tmp_path / "run/base/model").resolve() == model


def test_dropout_in_the_config_is_noted(model):
    config = json.loads((model / "config.json").read_text()) | {"attention_dropout": 0.1}
    (model / "config.json").write_text(json.dumps(config))
    assert source_facts(model).notes == ("the model's config has dropout: {'attention_dropout': 0.1}",)


def test_a_missing_folder_is_no_model(tmp_path):
    assert "is not a folder" in problem(tmp_path / "nothing").what


def test_a_broken_config_is_named(model):
    (model / "config.json").write_text("{broken")
    assert f"{model / 'config.json'} cannot be read" in problem(model).what


def test_a_missing_config_is_named(model):
    (model / "config.json").unlink()
    assert "has no config.json" in problem(model).what


def test_pickled_weights_are_refused_with_a_way_out(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    found = problem(model)
    assert "a pickle (pytorch_model.bin)" in found.what
    assert "save_pretrained" in found.hint


def test_no_weights_are_refused(model):
    (model / "model.safetensors").unlink()
    assert "has no weights" in problem(model).what


@pytest.mark.parametrize("keep_bytes", [3, 500, -1])
def test_a_copy_that_was_cut_off_is_found_without_loading_it(model, keep_bytes):
    raw = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(raw[:keep_bytes])
    assert "is damaged or cut off" in problem(model).what


def test_a_missing_shard_is_named(model):
    shutil.copy(model / "model.safetensors", model / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in problem(model).what


def test_a_hub_model_without_network_is_one_clear_problem(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LauncherError) as caught:
        model_folder("nobody/no-such-model", None)
    (found,) = caught.value.problems
    assert (found.code, found.where) == ("E547", "model.source")
    assert found.what.startswith("nobody/no-such-model cannot be fetched: ")
