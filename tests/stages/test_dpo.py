"""DPO moves the policy towards the chosen answers, away from the frozen model that it starts from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from launcher.rundir.folder import RunDir, read_json
from tests.stages.harness import run_ranks
from tests.stages.look import curve, held_out, train
from tests.stages.runs import make_run, preferences

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def run(world):
    run = make_run(world, kind="dpo", micro=16, zero=2, stage={"steps": 40, "lr": 5e-3})
    train(run, "dpo")
    return run


def test_before_training_policy_and_reference_are_the_same(run):
    figures = held_out(run, "dpo")

    assert (figures["before/accuracy"], figures["before/margin"]) == (0.5, 0.0)
    assert figures["before/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert curve(run, "dpo")[0] == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_learns_to_prefer_the_chosen_answers(run):
    figures = held_out(run, "dpo")

    assert figures["after/accuracy"] >= 0.9
    assert figures["after/margin"] > 0.5
    assert figures["after/loss"] < 0.5


def test_both_log_probabilities_are_told_so_that_a_falling_chosen_answer_shows(run):
    figures = held_out(run, "dpo")
    moved = {side: figures[f"after/{side}_logp"] - figures[f"before/{side}_logp"] for side in ("chosen", "rejected")}

    assert figures["after/margin"] == pytest.approx(0.1 * (moved["chosen"] - moved["rejected"]), abs=1e-3)
    assert {"chosen_logp", "rejected_logp", "accuracy", "margin"} <= _last_line(run).keys()
    assert read_json(run.stage("dpo").result)["groups"].keys() == {"down"}


def _last_line(run):
    lines = [json.loads(line) for line in run.stage("dpo").metrics.read_text().splitlines()]
    return [line for line in lines if "loss" in line][-1]


def reference_of(run: RunDir) -> dict:
    import numpy as np

    with np.load(run.stage("dpo").path / "reference.npz") as file:
        return {name: file[name] for name in ("inputs", "train", "held_out")}


def _answer_nats(model: Path, rows: dict[str, list]) -> list[list[float]]:
    """As transformers scores the answers, one at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    policy, told = AutoModelForCausalLM.from_pretrained(model), []
    for side in ("chosen_ids", "rejected_ids"):
        told.append([])
        for prompt, answer in zip(rows["prompt_ids"], rows[side], strict=True):
            with torch.no_grad():
                logp = policy(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            told[-1].append(sum(logp[place, token].item() for place, token in enumerate(answer)))
    return told


@pytest.mark.parametrize(
    "layout", [{"micro": 8}, {"ranks": 2, "pp": 2, "zero": 1, "micro": 4, "accum": 2}], ids=["alone", "pp"]
)
def test_the_reference_is_the_model_that_the_stage_starts_from_on_the_rows_that_it_will_see(world, layout):
    run = make_run(world, kind="dpo", stage={"steps": 2}, **layout)
    train(run, "dpo", ranks=layout.get("ranks", 1))
    kept = reference_of(run)
    expected = {
        "train": run_ranks(_answer_nats, world / "model", preferences(96, 1), world=1)[0],
        "held_out": run_ranks(_answer_nats, world / "model", preferences(24, 2), world=1)[0],
    }
    seen = ~(kept["train"] != kept["train"]).any(axis=0)  # NaN is unequal to itself

    assert seen.sum() == 2 * 8
    for side in (0, 1):
        assert kept["held_out"][side] == pytest.approx(expected["held_out"][side], abs=1e-4)
        assert kept["train"][side][seen] == pytest.approx(
            [n for n, s in zip(expected["train"][side], seen, strict=True) if s], abs=1e-4
        )


@pytest.fixture
def finished(world):
    run = make_run(world, kind="dpo", stage={"steps": 2})
    train(run, "dpo")
    return run


def test_a_kept_reference_is_used_again(finished):
    """Shown by one that was changed: every answer that was chosen is 10 nats likelier under it."""
    import numpy as np

    kept = reference_of(finished)
    shifted = {name: kept[name] + np.array([[10.0], [0.0]]) for name in ("train", "held_out")}
    np.savez(finished.stage("dpo").path / "reference.npz", inputs=kept["inputs"], **shifted)
    train(finished, "dpo")

    assert curve(finished, "dpo")[0] == pytest.approx(math.log(1 + math.e), abs=1e-5)  # beta 0.1 x 10 nats: -log sigmoid(-1)
    assert held_out(finished, "dpo")["before/margin"] == pytest.approx(-1.0, abs=1e-5)


def test_a_reference_of_other_inputs_is_worked_out_again(finished):
    import numpy as np

    kept = reference_of(finished)
    np.savez(finished.stage("dpo").path / "reference.npz", **{**kept, "train": kept["train"] + 1, "inputs": np.array("others")})
    train(finished, "dpo")

    again = reference_of(finished)
    assert again["inputs"] == kept["inputs"]
    assert np.array_equal(again["train"], kept["train"], equal_nan=True)


@pytest.mark.parametrize("size", [0, 300])
def test_what_a_power_cut_left_of_a_reference_is_worked_out_again(finished, size):
    import numpy as np

    kept, path = reference_of(finished), finished.stage("dpo").path / "reference.npz"
    path.write_bytes(path.read_bytes()[:size])
    train(finished, "dpo")

    assert np.array_equal(reference_of(finished)["train"], kept["train"], equal_nan=True)
