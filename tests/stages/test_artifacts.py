"""What a stage hands on: one file or several, settings kept, and other programs get the logits that the engine had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.rundir.artifact import find_damage, read_manifest
from launcher.rundir.folder import RunDir, read_json
from tests.stages.harness import fork_ranks, run_ranks
from tests.stages.look import largest_difference, train, weights
from tests.stages.runs import END, make_run, write_model

pytestmark = pytest.mark.ranks

IDS = [[10, 11, 12, 13, 14, END], [30, 29, 28, 27, 26, END]]
LAYOUTS = {
    "zero 0": {},
    "zero 3": {"ranks": 2, "zero": 3, "micro": 4},
    "tensor": {"ranks": 2, "tp": 2, "zero": 1},
    "pipeline": {"ranks": 2, "pp": 2, "zero": 1, "micro": 4, "accum": 2},
}


def _train_and_score(run: RunDir, kind: str) -> None:
    """Train the stage; the rank that has the loss writes what its engine scores IDS with at the end. Leaves as a rank does."""
    import torch

    from launcher.stages import reward
    from launcher.stages.__main__ import main
    from launcher.train import language
    from launcher.train.batches import Batch

    story = reward if kind == "reward" else language
    run_course = story.run_course

    def run_and_score(course):
        run_course(course)
        targets, ends = [[*ids[1:], -100] for ids in IDS], [len(ids) - 1 for ids in IDS]
        goal = torch.tensor(ends if kind == "reward" else targets)
        scores = course.engine.score(
            [Batch(ids_ST=torch.tensor(IDS), goal=goal, num_rows=2, weight=2)] * course.task.order.grad_accum
        )
        course.engine.settle()
        if course.engine.mesh.scores and course.engine.mesh.dp_rank == 0:
            (run.path / "scored.json").write_text(json.dumps([part.tolist() for part in scores[0]]))

    story.run_course = run_and_score
    main(["train", str(run.path), kind])


def _score_by_transformers(folder: Path, kind: str) -> list:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    ids = torch.tensor(IDS)
    with torch.no_grad():
        if kind == "reward":
            return [AutoModelForSequenceClassification.from_pretrained(folder)(input_ids=ids).logits.squeeze(-1).tolist()]
        logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)
    return [nll.tolist(), (logits.argmax(-1) == ids[:, 1:]).float().sum(1).tolist()]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_another_program_scores_with_the_folder_as_the_engine_did(world, kind, layout):
    run = make_run(world, kind=kind, stage={"lr": 1e-2}, **layout)
    ends = fork_ranks(_train_and_score, run, kind, world=layout.get("ranks", 1))
    assert not any(end.exit_code for end in ends), run.stage(kind).rank_log(0).read_text()
    [theirs] = run_ranks(_score_by_transformers, run.stage(kind).artifact, kind, world=1)

    for ours_part, theirs_part in zip(json.loads((run.path / "scored.json").read_text()), theirs, strict=True):
        assert ours_part == pytest.approx(theirs_part, abs=2e-5)


def _train_into_small_files(run: RunDir, kind: str) -> None:
    from launcher.stages.__main__ import main
    from launcher.train import artifacts

    artifacts.SHARD_BYTES = 20_000
    main(["train", str(run.path), kind])


def test_a_large_model_is_handed_on_in_several_files_that_a_later_stage_reads(world):
    whole, several = (make_run(world, kind="sft", **LAYOUTS["tensor"]) for _ in range(2))
    train(whole, "sft", ranks=2)
    assert [end.exit_code for end in fork_ranks(_train_into_small_files, several, "sft", world=2)] == [0, 0]
    artifact = several.stage("sft").artifact
    files = sorted(path.name for path in artifact.glob("*.safetensors"))
    index = read_json(artifact / "model.safetensors.index.json")

    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    assert find_damage(artifact) == []
    assert {*files, "model.safetensors.index.json"} <= (read_manifest(artifact) or {})["files"].keys()
    read = {name: weights(artifact, file)[name] for name, file in index["weight_map"].items()}
    assert largest_difference(read, weights(whole.stage("sft").artifact)) == 0.0
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in read.values())

    later = make_run(world, kind="dpo", start=artifact, stage={"steps": 1, "lr": 1e-12})
    train(later, "dpo")
    assert largest_difference(weights(later.stage("dpo").artifact), read) < 1e-9


def test_an_adapter_is_merged_into_several_files_too(world):
    run = make_run(world, kind="sft", model={"adapter": {"kind": "lora", "rank": 2, "alpha": 4}})
    assert [end.exit_code for end in fork_ranks(_train_into_small_files, run, "sft", world=1)] == [0]
    artifact = run.stage("sft").artifact

    assert len(list(artifact.glob("model-*.safetensors"))) > 3
    [scores] = run_ranks(_score_by_transformers, artifact, "sft", world=1)
    assert all(nll > 0 for nll in scores[0])


def _write_settings(folder: Path) -> None:
    write_model(folder)
    settings = {"eos_token_id": [END, 9], "max_new_tokens": 7, "repetition_penalty": 1.2, "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(settings))


def test_settings_of_generation_are_kept(world):
    """Of a model as published: a temperature without do_sample, which transformers refuses to write."""
    run_ranks(_write_settings, world / "settings", world=1)
    run = make_run(world, kind="sft", start=world / "settings", stage={"steps": 1})
    train(run, "sft")
    kept = read_json(run.stage("sft").artifact / "generation_config.json")

    assert kept["eos_token_id"] == [END, 9]
    assert (kept["max_new_tokens"], kept["repetition_penalty"]) == (7, 1.2)
    assert (kept["temperature"], kept["do_sample"]) == (0.7, True)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", ["zero 3", "pipeline"])
def test_a_tied_weight_is_written_once_and_untied_ones_both(world, tied, layout):
    folder = world / f"tied-{tied}"
    if not folder.exists():
        run_ranks(_write_tied_or_not, folder, tied, world=1)
    run = make_run(world, kind="sft", start=folder, **LAYOUTS[layout])
    train(run, "sft", ranks=2)

    assert ("lm_head.weight" in weights(run.stage("sft").artifact)) != tied
    manifest = read_manifest(run.stage("sft").artifact) or {}
    assert manifest["parameters"] == sum(weight.size for weight in weights(run.stage("sft").artifact).values())


def _write_tied_or_not(folder: Path, tied: bool) -> None:
    write_model(folder, tied=tied)
