"""SFT learns answers, and packed rows are trained as if they were alone."""

from __future__ import annotations

import json

import pytest

from tests.stages import runs
from tests.stages.harness import fork_ranks, run_ranks
from tests.stages.look import curve, held_out, largest_difference, train, weights
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks


def test_sft_learns_the_answers(world):
    run = make_run(world, kind="sft", micro=16, zero=2, stage={"steps": 60, "lr": 1e-2})
    train(run, "sft")
    figures = held_out(run, "sft")

    assert figures["after/loss"] < figures["before/loss"] - 0.7
    assert figures["after/token_accuracy"] > figures["before/token_accuracy"] + 0.2


def _save_small(world):
    """The same 24 rows alone and in packs of at most 32 tokens; the number of packs."""
    alone = runs.answers(24, 5)
    packed = runs.pack(alone, 32)
    for name, rows in (("small", alone), ("small_packed", packed)):
        for split in ("train", "held_out"):
            runs.save_rows(world / name / split, rows)
    return len(packed["input_ids"])


@pytest.fixture(scope="module")
def num_packs(world):
    return run_ranks(_save_small, world, world=1)[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_train_as_if_they_were_alone(world, num_packs, attention):
    """All rows in every step, alone and packed: the whole curve must be the same."""
    alone = make_run(world, kind="sft", data="small", micro=24, model={"attention": attention})
    packed = make_run(
        world, kind="sft", data="small_packed", micro=num_packs, stage={"packing": True}, model={"attention": attention}
    )
    train(alone, "sft")
    train(packed, "sft")

    assert num_packs < 24
    assert curve(packed, "sft") == pytest.approx(curve(alone, "sft"), abs=1e-5)
    assert held_out(packed, "sft") == pytest.approx(held_out(alone, "sft"), abs=1e-5)
    assert largest_difference(weights(packed.stage("sft").artifact), weights(alone.stage("sft").artifact)) < 1e-4


def _train_with_a_leak(run):
    """An attention that does not see from the positions where a row of a pack begins, as kernels of other models have been."""
    from transformers import masking_utils

    from launcher.stages.__main__ import main

    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    return main(["train", str(run.path), "sft"])


def test_packs_whose_rows_see_each_other_are_refused(world, num_packs):
    run = make_run(world, kind="sft", data="small_packed", micro=num_packs, stage={"packing": True})
    [end] = fork_ranks(_train_with_a_leak, run, world=1)
    [problem] = json.loads(run.stage("sft").problem(0).read_text())["problems"]

    assert end.exit_code == 5
    assert problem["code"] == "E559"
    assert "nats a token differently behind another row than alone" in problem["what"]
