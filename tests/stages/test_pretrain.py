"""Pretraining learns, and hands on a folder that another program can load."""

from __future__ import annotations

import json

import pytest

from launcher.rundir.artifact import find_damage
from launcher.rundir.folder import read_json
from tests.stages.harness import run_ranks
from tests.stages.look import curve, held_out, train
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def run(world):
    run = make_run(world, kind="pretrain", micro=16, zero=2, stage={"steps": 60, "lr": 1e-2}, job={"tensorboard": True})
    train(run, "pretrain")
    return run


def test_pretraining_learns_to_count(run):
    figures = held_out(run, "pretrain")

    assert figures["before/loss"] == pytest.approx(4.19, abs=0.05)  # log 64 and a little: a model that knows nothing
    assert figures["after/loss"] < figures["before/loss"] - 1.5
    assert figures["after/token_accuracy"] > 0.2


def test_metrics_are_json_lines_and_event_files(run):
    lines = [json.loads(line) for line in run.stage("pretrain").metrics.read_text().splitlines()]

    assert lines[0].keys() >= {"step", "t", "held_out/loss"}
    assert lines[-1]["step"] == 60
    assert {"loss", "learning_rate", "grad_norm", "epoch"} <= lines[1].keys()
    assert len(curve(run, "pretrain")) == 60
    assert list(run.stage("pretrain").tensorboard.glob("events.out.tfevents.*"))


def test_the_result_tells_what_it_cost(run):
    result = read_json(run.stage("pretrain").result)

    assert (result["schema"], result["kind"], result["steps"], result["world"]) == (1, "pretrain", 60, 1)
    assert len(result["cpu_s"]) == len(result["peak_rss_bytes"]) == 1
    assert result["peak_rss_bytes"][0] > 100 * 1024**2
    assert 0 < result["seconds"] < 120


def test_the_artifact_is_whole_and_names_its_origin(run):
    artifact = run.stage("pretrain").artifact
    manifest = read_json(artifact / "manifest.json")

    assert find_damage(artifact) == []
    assert manifest["stage"] == manifest["kind"] == "pretrain"
    assert manifest["model_kind"] == "causal"
    assert manifest["parents"] == {}
    assert len(manifest["inputs"]) == 64
    assert manifest["data_fingerprint"] == "f" * 64


def _generate(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.use_cache
    assert model.dtype == torch.float32
    ids = model.generate(torch.tensor([[10, 11, 12, 13]]), max_new_tokens=4, do_sample=False)
    return ids[0].tolist(), tokenizer.pad_token, model.generation_config.eos_token_id


def test_the_artifact_loads_and_counts_on(run):
    [(ids, pad, end)] = run_ranks(_generate, run.stage("pretrain").artifact, world=1)

    assert ids[:4] == [10, 11, 12, 13]
    assert ids[4] in (14, 15)  # the rows count by one or by two
    assert (pad, end) == ("<pad>", 1)


def test_no_path_of_this_machine_is_handed_on(run):
    texts = [path.read_text() for path in run.stage("pretrain").artifact.glob("*.json")]

    assert not [text for text in texts if str(run.path.parent) in text]
    assert read_json(run.stage("pretrain").artifact / "config.json")["use_cache"] is True
