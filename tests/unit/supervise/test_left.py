"""What a stage left behind, read from a real folder; and setting it aside."""

from __future__ import annotations

from launcher.rundir.artifact import write_manifest
from launcher.rundir.folder import RunDir, write_atomic, write_json
from launcher.supervise import left
from launcher.supervise.verify import Verifier


def write_checkpoint(run: RunDir, step: int, **facts: object) -> None:
    folder = run.stage("sft").checkpoints / f"step{step}"
    write_atomic(folder / "weights", "abc")
    write_manifest(folder, {"format": 2, "step": step, "precision": "fp32", "inputs": "now", **facts})


def test_only_prepared_data_means_untouched(run):
    write_json(run.stage("sft").prepared, {"fingerprint": "f"})
    facts = left.stage_facts(run, "sft", Verifier())
    assert not facts.touched
    assert not facts.has_artifact


def test_checkpoints_that_do_not_verify_are_not_listed(run):
    write_checkpoint(run, 1)
    write_checkpoint(run, 2)
    write_checkpoint(run, 3)
    write_atomic(run.stage("sft").checkpoints / "step2" / "weights", "abd")  # same size, another content
    (run.stage("sft").checkpoints / "step3" / "manifest.json").unlink()
    write_atomic(run.stage("sft").checkpoints / ".work" / "weights", "abc")
    facts = left.stage_facts(run, "sft", Verifier())
    assert [one.step for one in facts.checkpoints] == [1]
    assert {step: damage.file for step, damage in facts.damaged.items()} == {2: "weights", 3: "manifest.json"}


def test_a_finished_stage_is_read_with_its_worlds_and_inputs(run):
    folder = run.stage("sft")
    write_atomic(folder.artifact / "model.safetensors", "weights")
    write_manifest(folder.artifact, {"inputs": "now"})
    for rank in range(2):
        write_json(folder.done(rank), {"world": 2})
    facts = left.stage_facts(run, "sft", Verifier())
    assert (facts.inputs, facts.worlds, list(facts.damage), facts.touched) == ("now", {0: 2, 1: 2}, [], True)


def test_a_change_after_the_first_look_is_found_at_the_second(run):
    folder = run.stage("sft").artifact
    write_atomic(folder / "model.safetensors", "weights")
    write_manifest(folder, {"inputs": "now"})
    verifier = Verifier()
    assert verifier.find_damage(folder) == []
    (folder / "model.safetensors").write_text("weightz")
    assert [item.file for item in verifier.find_damage(folder)] == ["model.safetensors"]


def test_setting_aside_keeps_everything_and_what_prepare_wrote_in_place(run):
    folder = run.stage("sft")
    write_json(folder.prepared, {"fingerprint": "f"})
    write_atomic(folder.artifact / "model.safetensors", "weights")
    write_checkpoint(run, 1)
    first = left.set_aside(run, "sft")
    write_atomic(folder.metrics, "{}\n")
    second = left.set_aside(run, "sft")
    assert first is not None
    assert second is not None
    assert first.name == "sft-1"
    assert second.name == "sft-2"
    assert (first / "artifact" / "model.safetensors").read_text() == "weights"
    assert (first / "checkpoints" / "step1" / "weights").exists()
    assert [path.name for path in folder.path.iterdir()] == ["prepared.json"]
    assert left.set_aside(run, "sft") is None


def test_going_on_from_a_checkpoint_makes_room_for_the_artifact_alone(run):
    folder = run.stage("sft")
    write_atomic(folder.artifact / "model.safetensors", "weights")
    write_checkpoint(run, 1)
    moved = left.set_unfinished_artifact_aside(run, "sft")
    assert moved is not None
    assert (moved / "artifact").is_dir()
    assert not folder.artifact.exists()
    assert (folder.checkpoints / "step1").is_dir()


def test_a_checkpoint_of_the_format_that_only_its_own_layout_could_read_is_none(run):
    write_checkpoint(run, 1)
    folder = run.stage("sft").checkpoints / "step2"
    write_atomic(folder / "weights", "abc")
    write_manifest(folder, {"step": 2, "world": 2, "zero": 1, "precision": "fp32", "inputs": "now"})
    facts = left.stage_facts(run, "sft", Verifier())
    assert [one.step for one in facts.checkpoints] == [1]
