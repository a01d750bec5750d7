"""examples/llama2_guide.yaml itself, on files of the same shape in small, on two CPU ranks: 4-bit nf4 SFT, reward model, PPO
and DPO, each from the artifact that the example names. None of the guide's mistakes shows in what comes out.
"""

from __future__ import annotations

import json

import pytest
from datasets import load_from_disk

from launcher.rundir.artifact import find_damage, read_manifest, sha256_file
from launcher.rundir.folder import RunDir, read_json
from launcher.spec.load import open_job
from tests.stages import guide_world
from tests.stages.harness import run_ranks, run_verb
from tests.stages.look import curve, held_out, notes, train, weights

pytestmark = pytest.mark.ranks

STAGES = ("sft", "reward", "ppo", "dpo")
QUANTISED = ("sft", "reward", "dpo")
UNK, END = 0, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    """The whole chain, trained once."""
    folder = guide_world.make_guide_world(tmp_path_factory.mktemp("guide"))
    run = guide_world.make_guide_run(folder)
    [end] = run_verb("prepare", run.path)
    assert end.exit_code == 0, (run.path / "prepare" / "log.txt").read_text()
    for stage in STAGES:
        train(run, stage, ranks=2)
    return run


def rows(run: RunDir, stage: str):
    return load_from_disk(str(run.path / read_json(run.stage(stage).prepared)["train"]))


def texts(run: RunDir, ids: list[list[int]]) -> list[str]:
    [decoded] = run_ranks(_decode, run.base / "tokenizer", ids, world=1)
    return decoded


def _decode(folder, ids):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).batch_decode(ids)


def test_the_twin_is_the_example_but_for_places_sizes_and_rates(tmp_path):
    for name in ("guanaco", "hh-rlhf", "llama2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("config.json" if name == "llama2" else "train.jsonl")).write_text("{}")
    example = open_job(guide_world.EXAMPLE).job.model_dump(by_alias=True)
    twin = open_job(guide_world.EXAMPLE, guide_world.overrides(tmp_path)).job.model_dump(by_alias=True)
    changed = {name for name in _leaves(twin) if _leaves(twin)[name] != _leaves(example)[name]}

    assert {name.rsplit(".", 1)[-1] for name in changed} == {
        *("source", "gpu", "slots", "global", "steps", "lr", "critic_lr", "log_every", "max_new_tokens")
    }


def _leaves(value: object, name: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {key: leaf for part in value for key, leaf in _leaves(value[part], f"{name}.{part}").items()}
    if isinstance(value, tuple | list):
        return {key: leaf for i, part in enumerate(value) for key, leaf in _leaves(part, f"{name}.{i}").items()}
    return {name: value}


def test_every_stage_learns(run):
    """On held-out rows, with the merged model that is handed on."""
    sft, reward, dpo = (held_out(run, stage) for stage in QUANTISED)

    assert sft["after/loss"] < sft["before/loss"] - 0.5
    assert reward["after/accuracy"] > 0.9
    assert dpo["after/accuracy"] > 0.9
    assert dpo["after/margin"] > 0.3
    for stage in QUANTISED:
        assert "on its 4-bit base the adapter reached" in notes(run, stage)


def test_ppo_moves_the_merged_model_by_the_score_of_the_reward_model(run):
    figures = held_out(run, "ppo")

    assert figures["before/kl"] == 0
    assert abs(figures["after/kl"]) > 1e-3  # an estimate from few answers: it may be negative
    assert len(curve(run, "ppo", "score")) == 3
    assert "4-bit" not in notes(run, "ppo")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_hands_on_a_whole_merged_model_and_its_adapter(run, stage):
    artifact = run.stage(stage).artifact
    config, adapter = read_json(artifact / "config.json"), read_json(artifact / "adapter" / "adapter_config.json")

    assert find_damage(artifact) == []
    assert [read_json(run.stage(stage).done(rank))["world"] for rank in range(2)] == [2, 2]
    assert "quantization_config" not in config
    assert {str(weight.dtype) for weight in weights(artifact).values()} == {"float32"}
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"], adapter["bias"]) == (64, 16, 0.1, "none")
    assert weights(artifact / "adapter", "adapter_model.safetensors")


def test_ppo_and_dpo_start_from_sft_and_the_trained_reward_model_scores(run):
    """Mistake 1: the guide's PPO began at the base model, and nobody handed it the reward model."""
    manifests = {stage: sha256_file(run.stage(stage).artifact / "manifest.json") for stage in STAGES}
    parents = {stage: (read_manifest(run.stage(stage).artifact) or {})["parents"] for stage in STAGES}

    assert set(parents["ppo"].values()) == {manifests["sft"], manifests["reward"]}
    assert set(parents["reward"].values()) == set(parents["dpo"].values()) == {manifests["sft"]}


def test_the_reward_model_has_one_scalar_head_and_the_adapter_task_of_a_scorer(run):
    """Mistake 2: a causal adapter on a language model with num_labels=1."""
    artifact = run.stage("reward").artifact
    tasks = {stage: read_json(run.stage(stage).artifact / "adapter/adapter_config.json")["task_type"] for stage in STAGES}

    assert read_json(artifact / "config.json")["architectures"] == ["LlamaForSequenceClassification"]
    assert weights(artifact)["score.weight"].shape == (1, 64)
    assert tasks == {"sft": "CAUSAL_LM", "reward": "SEQ_CLS", "ppo": "CAUSAL_LM", "dpo": "CAUSAL_LM"}


def test_prompts_end_with_the_question_and_hold_no_answer(run):
    """Mistakes 3 and 4: prompts made of both answers, queries that were whole dialogues."""
    dpo, ppo = rows(run, "dpo"), rows(run, "ppo")
    good, bad = (texts(run, dpo[name][:]) for name in ("chosen_ids", "rejected_ids"))

    assert all(text.startswith("Gladly.") and text.endswith("why. </s>") for text in good)
    assert all(text.startswith("No idea.") and text.endswith(". </s>") for text in bad)
    for text in texts(run, [*dpo["prompt_ids"][:], *ppo["prompt_ids"][:]]):
        assert text.endswith("[/INST]")
        assert "No idea" not in text


def test_padding_is_no_end_token_and_every_answer_keeps_its_end(run):
    """Mistake 5: pad = eos. The published tokenizer has no padding token at all, and pads on the left."""
    tokenizer = read_json(run.base / "tokenizer" / "tokenizer_config.json")

    assert (tokenizer["pad_token"], tokenizer["eos_token"], tokenizer["padding_side"]) == ("<unk>", "</s>", "right")
    for stage in STAGES:
        assert read_json(run.stage(stage).artifact / "config.json")["pad_token_id"] == UNK
    assert {labels[-1] for labels in rows(run, "sft")["labels"][:]} == {END}
    assert {ids[-1] for name in ("chosen_ids", "rejected_ids") for ids in rows(run, "reward")[name][:]} == {END}


def test_no_code_beside_the_weights_was_run_and_none_is_named_in_what_is_handed_on(run):
    """Mistake 7: trust_remote_code."""
    source = (run.base / "model").resolve()

    assert (source / "code.py").exists()
    assert not (source / "it-ran").exists()
    for stage in STAGES:
        artifact = run.stage(stage).artifact
        assert [path.name for path in artifact.rglob("*.py")] == []
        for name in ("config.json", "tokenizer_config.json"):
            assert "auto_map" not in json.loads((artifact / name).read_text())


def test_over_long_pairs_are_dropped_and_rows_that_are_no_pair_skipped_and_both_counted(run):
    """Mistake 8: measured after a cut, nothing is ever too long. The tokenizer's own limit of 64 cuts nothing here."""
    dropped = {stage: read_json(run.stage(stage).prepared)["dropped"] for stage in STAGES}
    longest = max(len(ids) for name in ("chosen_ids", "rejected_ids") for ids in rows(run, "reward")[name][:])

    assert dropped["reward"] == dropped["dpo"] == {"too_long": guide_world.NUM_TOO_LONG, "bad": guide_world.NUM_BAD}
    assert dropped["ppo"] == {"too_long": 0, "bad": guide_world.NUM_BAD}
    assert 64 < longest <= 512
