"""A stopped and resumed stage ends where the straight one ends, bit for bit; what cannot be resumed is refused by name."""

from __future__ import annotations

import json
import shutil

import pytest

from launcher.rundir.artifact import find_damage
from tests.stages.look import curve, held_out, largest_difference, notes, train, weights
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.2}}
CASES = {
    "pretrain over the end of an epoch": {"kind": "pretrain", "ranks": 1, "zero": 0, "micro": 32, "stage": {"steps": 6}},
    "sft zero 2": {"kind": "sft", "ranks": 2, "zero": 2, "micro": 2, "accum": 2},
    "sft zero 3 with an adapter and dropout": {"kind": "sft", "ranks": 2, "zero": 3, "micro": 4, "model": LORA},
    "reward zero 3": {"kind": "reward", "ranks": 2, "zero": 3, "micro": 4},
    "dpo zero 1": {"kind": "dpo", "ranks": 2, "zero": 1, "micro": 4},
}


def stop_after(run, kind, step):
    """What a kill between step `step` and the end leaves behind: the checkpoint, a curve that ran on, no artifact."""
    stage = run.stage(kind)
    for folder in stage.checkpoints.glob("step*"):
        if folder.name != f"step{step}":
            shutil.rmtree(folder)
    shutil.rmtree(stage.artifact)
    shutil.rmtree(stage.path / "done")
    stage.result.unlink()
    (stage.checkpoints / ".work" / "step5").mkdir(parents=True)


def run_with_checkpoints(world, kind, *, keep=9, **case):
    stage = {"keep": keep, **case.pop("stage", {})}
    run = make_run(world, kind=kind, checkpoint_every=2, stage=stage, **case)
    train(run, kind, ranks=case.get("ranks", 1))
    return run


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_resumed_stage_equals_the_straight_one_bit_for_bit(world, case):
    case = dict(case)
    kind, ranks = case.pop("kind"), case["ranks"]
    run = run_with_checkpoints(world, kind, **case)
    straight = curve(run, kind), held_out(run, kind), weights(run.stage(kind).artifact)

    stop_after(run, kind, 2)
    train(run, kind, ranks=ranks)

    assert "resumed from step 2" in notes(run, kind)
    assert (curve(run, kind), held_out(run, kind)) == straight[:2]
    assert largest_difference(weights(run.stage(kind).artifact), straight[2]) == 0.0
    assert not (run.stage(kind).checkpoints / ".work" / "step5").exists()


def test_a_stage_that_ended_before_its_artifact_only_hands_on(world):
    run = run_with_checkpoints(world, "sft", ranks=1, zero=2, micro=8)
    straight = curve(run, "sft"), held_out(run, "sft"), weights(run.stage("sft").artifact)

    stop_after(run, "sft", 4)
    train(run, "sft")

    assert "resumed from step 4" in notes(run, "sft")
    assert (curve(run, "sft"), held_out(run, "sft")) == straight[:2]
    assert largest_difference(weights(run.stage("sft").artifact), straight[2]) == 0.0


def test_checkpoints_are_whole_and_pruned(world):
    run = run_with_checkpoints(world, "sft", keep=1, ranks=1, zero=1, micro=8)
    [kept] = run.stage("sft").checkpoints.glob("step*")

    assert kept.name == "step4"
    assert find_damage(kept) == []
    facts = json.loads((kept / "manifest.json").read_text())
    assert facts.items() >= {"stage": "sft", "step": 4, "world": 1, "dp": 1, "zero": 1}.items()
    assert not list(kept.glob("model*.safetensors")), "the engine's states hold the weights already"


@pytest.fixture
def checkpointed(world):
    """A finished stage with checkpoints of steps 2 and 4; the last step's loss depends on all before."""
    return run_with_checkpoints(world, "sft", ranks=1, zero=2, micro=8)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(checkpointed):
    straight = curve(checkpointed, "sft")
    states = checkpointed.stage("sft").checkpoints / "step4" / "rank0.safetensors"
    data = bytearray(states.read_bytes())
    data[len(data) // 2] ^= 1
    states.write_bytes(data)
    train(checkpointed, "sft")

    assert "checkpoint step4 is not used: rank0.safetensors has another sha256\nresumed from step 2" in notes(
        checkpointed, "sft"
    )
    assert curve(checkpointed, "sft") == straight


def test_a_stage_with_only_checkpoints_of_other_settings_starts_again_and_says_why(checkpointed):
    straight = curve(checkpointed, "sft")
    job = json.loads(checkpointed.job_json.read_text())
    job["stages"][0]["lr"] *= 2
    checkpointed.job_json.write_text(json.dumps(job))
    train(checkpointed, "sft")

    for step in (4, 2):
        assert f"checkpoint step{step} is not used: its hash of settings" in notes(checkpointed, "sft")
    assert "resumed" not in notes(checkpointed, "sft")
    assert curve(checkpointed, "sft")[0] == straight[0]
    assert curve(checkpointed, "sft")[-1] != straight[-1]


def test_figures_before_training_that_were_lost_are_not_made_up(checkpointed):
    stop_after(checkpointed, "sft", 2)
    (checkpointed.stage("sft").path / "before.json").unlink()
    train(checkpointed, "sft")

    assert "the figures before training were lost" in notes(checkpointed, "sft")
    assert held_out(checkpointed, "sft").keys() == {"after/loss", "after/token_accuracy"}
