"""A stopped and resumed stage ends where the straight one ends, bit for bit; what cannot be resumed is refused by name."""

from __future__ import annotations

import json
import shutil

import pytest

from launcher.rundir.artifact import find_damage
from tests.stages.look import curve, held_out, largest_difference, notes, train, weights
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}
CASES = {
    "pretrain over the end of an epoch": {"kind": "pretrain", "ranks": 1, "zero": 0, "micro": 32, "stage": {"steps": 6}},
    "sft zero 2": {"kind": "sft", "ranks": 2, "zero": 2, "micro": 2, "accum": 2},
    "sft zero 3 with an adapter": {"kind": "sft", "ranks": 2, "zero": 3, "micro": 4, "model": LORA},
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
    (stage.checkpoints / ".work" / "checkpoint-5").mkdir(parents=True)


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
    assert not (run.stage(kind).checkpoints / ".work" / "checkpoint-5").exists()


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
    assert {key: facts[key] for key in ("stage", "step", "world", "zero")} == {"stage": "sft", "step": 4, "world": 1, "zero": 1}
    assert not list(kept.glob("model.safetensors")), "the engine's states hold the weights already"


@pytest.fixture(scope="module")
def checkpointed(world):
    return run_with_checkpoints(world, "sft", ranks=1, zero=2, micro=8)


def refusal_of(run, **changes):
    """Why the checkpoints of `run` are refused under a changed order, as the ranks would say it."""
    from dataclasses import replace

    from launcher.rundir.folder import read_json
    from launcher.rundir.inputs import stage_inputs
    from launcher.rundir.order import read_order
    from launcher.train.checkpoints import refusal

    order = read_order(run.order("sft"))
    inputs = changes.pop("inputs", None) or stage_inputs(run, read_json(run.job_json), order)
    return refusal(run.stage("sft").checkpoints / "step2", replace(order, **changes), inputs)


def test_a_fitting_checkpoint_is_taken(checkpointed):
    assert refusal_of(checkpointed) is None


def test_a_zero_2_checkpoint_is_refused_under_zero_3_by_name(checkpointed):
    assert refusal_of(checkpointed, zero=3) == "its ZeRO stage is 2, this run's is 3"


def test_a_checkpoint_of_another_rank_count_is_refused(checkpointed):
    assert refusal_of(checkpointed, world=2) == "its number of ranks is 1, this run's is 2"


def test_a_checkpoint_of_other_settings_is_refused(checkpointed):
    assert "hash of settings" in refusal_of(checkpointed, inputs="0" * 64)


@pytest.fixture
def damaged(checkpointed):
    """A copy of the checkpointed run, to be damaged. Its manifest is written again only where a test does."""
    copy = checkpointed.path.with_name("damaged")
    shutil.copytree(checkpointed.path, copy, symlinks=True)
    yield type(checkpointed)(copy)
    shutil.rmtree(copy)


def test_a_flipped_bit_in_the_optimizer_state_is_refused(damaged):
    [states] = (damaged.stage("sft").checkpoints / "step2" / "global_step2").glob("*optim_states.pt")
    data = bytearray(states.read_bytes())
    data[len(data) // 2] ^= 1
    states.write_bytes(data)

    assert refusal_of(damaged).endswith("has another sha256")


def test_a_checkpoint_without_latest_is_refused_even_with_a_matching_manifest(damaged):
    """DeepSpeed would warn, return (None, None) and train on from random weights."""
    from launcher.rundir.artifact import read_manifest, write_manifest

    folder = damaged.stage("sft").checkpoints / "step2"
    facts = {key: value for key, value in read_manifest(folder).items() if key not in ("schema", "files")}
    (folder / "latest").unlink()
    assert refusal_of(damaged) == "latest is missing"
    (folder / "manifest.json").unlink()
    write_manifest(folder, facts)

    assert refusal_of(damaged).startswith("it holds no optimizer state")


def test_a_stage_with_only_refused_checkpoints_starts_again_and_says_why(damaged):
    from dataclasses import replace

    from launcher.rundir.folder import read_json, write_json
    from launcher.rundir.order import read_order, write_order

    straight = curve(damaged, "sft")
    write_order(damaged.order("sft"), replace(read_order(damaged.order("sft")), zero=1))
    config = read_json(damaged.ds_config("sft"))
    config["zero_optimization"]["stage"] = 1
    write_json(damaged.ds_config("sft"), config)
    train(damaged, "sft")

    assert "checkpoint step4 is not used: its ZeRO stage is 2, this run's is 1" in notes(damaged, "sft")
    assert curve(damaged, "sft") == pytest.approx(straight, abs=1e-4)
