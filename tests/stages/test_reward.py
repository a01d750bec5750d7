"""The reward model learns to tell pairs apart, and says so per group."""

from __future__ import annotations

import pytest

from launcher.rundir.folder import read_json
from tests.stages.harness import run_ranks
from tests.stages.look import held_out, train, weights
from tests.stages.runs import END, PAD, make_run

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def run(world):
    run = make_run(world, kind="reward", micro=16, zero=2, stage={"steps": 120, "lr": 1e-2, "gate": {"accuracy": 0.8}})
    train(run, "reward")
    return run


def test_the_reward_model_learns_to_tell_pairs_apart(run):
    figures = held_out(run, "reward")

    assert figures["after/accuracy"] > 0.8
    assert figures["after/margin"] > figures["before/margin"] + 1


def test_accuracy_is_told_per_named_group(run):
    assert read_json(run.stage("reward").result)["groups"].keys() == {"down"}


def _score(folder):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    up, down = [10, 11, 12, 13, 14, END], [10, 11, 10, 9, END]
    alone = [model(input_ids=torch.tensor([ids])).logits.item() for ids in (up, down)]
    padded = torch.tensor([up, [*down, PAD]])
    together = model(input_ids=padded, attention_mask=(padded != PAD).long()).logits.squeeze(-1).tolist()
    return alone, together, model.config.num_labels


def test_the_artifact_scores_the_same_alone_and_padded(run):
    """The end token counts as text, the pad token does not: with one token for both the score would move."""
    [(alone, together, num_labels)] = run_ranks(_score, run.stage("reward").artifact, world=1)

    assert num_labels == 1
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_artifact_is_a_reward_model_with_its_head(run):
    manifest = read_json(run.stage("reward").artifact / "manifest.json")

    assert manifest["model_kind"] == "reward"
    assert weights(run.stage("reward").artifact)["score.weight"].shape == (1, 32)
    assert "lm_head.weight" not in weights(run.stage("reward").artifact)
