"""Keep, resume, redo, start or refuse: from what lies in a stage's folder."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.errors import LauncherError
from launcher.rundir.artifact import Damage
from launcher.supervise.policy import CheckpointFact, StageFacts, decide

EMPTY = StageFacts(
    stage="sft",
    artifact="runs/sft/artifact",
    has_artifact=False,
    damage=[],
    inputs=None,
    worlds={},
    checkpoints=[],
    touched=False,
)
FINISHED = replace(EMPTY, has_artifact=True, inputs="now", worlds={0: 2, 1: 2}, touched=True)
CHECKPOINT = CheckpointFact(step=40, inputs="now", precision="fp32")
HALF_DONE = replace(EMPTY, touched=True, checkpoints=[CHECKPOINT, replace(CHECKPOINT, step=80)])


def action_of(facts: StageFacts) -> str:
    return decide(facts, inputs="now", precision="fp32").action


def reason_of(facts: StageFacts) -> str:
    return decide(facts, inputs="now", precision="fp32").reason


def test_an_untouched_stage_starts():
    assert action_of(EMPTY) == "start"


def test_a_finished_stage_with_the_same_inputs_is_kept():
    assert action_of(FINISHED) == "keep"


def test_a_finished_stage_is_kept_on_another_number_of_ranks():
    assert action_of(replace(FINISHED, worlds={0: 1})) == "keep"


def test_a_finished_stage_with_other_inputs_is_redone():
    assert action_of(replace(FINISHED, inputs="then")) == "redo"


def test_a_finished_stage_with_other_inputs_is_redone_even_if_its_artifact_is_damaged():
    assert action_of(replace(FINISHED, inputs="then", damage=[Damage(file="a", what="is missing")])) == "redo"


def test_damage_of_a_finished_stage_is_refused_and_names_every_file():
    damage = [Damage(file="model.safetensors", what="has another sha256"), Damage(file="config.json", what="is missing")]
    with pytest.raises(LauncherError) as caught:
        action_of(replace(FINISHED, damage=damage))
    assert [problem.code for problem in caught.value.problems] == ["E505", "E505"]
    assert caught.value.problems[0].where == "runs/sft/artifact/model.safetensors"
    assert caught.value.exit_code == 5


def test_an_artifact_without_a_manifest_is_damage_not_a_fresh_start():
    with pytest.raises(LauncherError):
        action_of(replace(FINISHED, inputs=None, damage=[Damage(file="manifest.json", what="missing or unreadable")]))


@pytest.mark.parametrize("worlds", [{}, {0: 2}, {0: 2, 1: 1}, {1: 1}])
def test_an_artifact_without_every_ranks_marker_is_not_finished(worlds):
    assert action_of(replace(FINISHED, worlds=worlds)) == "redo"


def test_an_unfinished_stage_goes_on_from_its_newest_checkpoint():
    assert decide(HALF_DONE, inputs="now", precision="fp32").reason == "goes on from the checkpoint of step 80"


def test_an_unfinished_stage_without_a_checkpoint_is_redone():
    assert reason_of(replace(EMPTY, touched=True)) == "has not finished and left no checkpoint"


def test_a_damaged_checkpoint_is_never_passed_over_in_silence():
    damaged = {step: Damage(file="weights.pt", what="has another sha256") for step in (20, 120)}
    alone = replace(EMPTY, touched=True, damaged={120: damaged[120]})
    assert (action_of(alone), reason_of(alone)) == (
        "redo",
        "the checkpoint of step 120 is damaged: weights.pt has another sha256",
    )
    beside = replace(HALF_DONE, damaged=damaged)
    assert action_of(beside) == "resume"
    assert "step 80; the checkpoint of step 120 is damaged" in reason_of(beside)
    assert "step 20" not in reason_of(beside)


def test_a_checkpoint_of_other_inputs_is_not_used():
    facts = replace(HALF_DONE, checkpoints=[replace(CHECKPOINT, inputs="then")])
    assert action_of(facts) == "redo"
    assert "other settings" in reason_of(facts)


def test_a_checkpoint_in_another_precision_is_not_used():
    facts = replace(HALF_DONE, checkpoints=[replace(CHECKPOINT, precision="bf16")])
    assert action_of(facts) == "redo"
    assert reason_of(facts) == "its checkpoint of step 40 was made in bf16, the plan has fp32"


def test_an_older_checkpoint_that_fits_is_used_where_the_newest_does_not():
    facts = replace(HALF_DONE, checkpoints=[CHECKPOINT, replace(CHECKPOINT, step=80, precision="bf16")])
    assert "step 40" in reason_of(facts)
