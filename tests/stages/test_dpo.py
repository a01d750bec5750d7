"""DPO moves the policy towards the chosen answers, away from the frozen model that it starts from."""

from __future__ import annotations

import math

import pytest

from launcher.rundir.folder import read_json
from tests.stages.look import curve, held_out, train
from tests.stages.runs import make_run

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
    import json

    lines = [json.loads(line) for line in run.stage("dpo").metrics.read_text().splitlines()]
    return [line for line in lines if "loss" in line][-1]
