"""The hash that decides whether a finished stage is kept: what changes it, and what must not."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from launcher.rundir.folder import RunDir, write_atomic, write_json
from launcher.rundir.inputs import inputs_sha256, parent_stages, stage_inputs, weights_fingerprint
from tests.orders import make_order

JOB: dict = {
    "name": "job",
    "seed": 0,
    "precision": None,
    "model": {"source": "/models/a", "attention": None, "adapter": {"kind": "lora", "rank": 8}},
    "batch": {"global": 32, "micro": None},
    "cluster": {"slots": 2},
    "parallel": {"zero": 1},
    "stages": [
        {"kind": "pretrain", "name": None, "data": {"source": "python-docs"}, "lr": 1e-3, "steps": 10, "batch": None},
        {"kind": "sft", "name": "tune", "from": "pretrain", "data": {"source": "/a.jsonl", "split": "train"}, "lr": 1e-3},
    ],
}
ORDER = make_order(stage="tune", model="stages/pretrain/artifact")


def changed(path: str, value: object) -> dict:
    job = copy.deepcopy(JOB)
    *steps, last = path.split(".")
    at = job
    for step in steps:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[last] = value
    return job


def hash_of(job: dict, stage: str = "tune", fingerprint: str = "f", **parents: str) -> str:
    return inputs_sha256(job, stage, fingerprint, parents or {"model": "m"})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("precision", "bf16"),
        ("model.adapter.rank", 16),
        ("model.source", "/models/b"),
        ("batch.global", 64),
        ("stages.1.lr", 2e-3),
        ("stages.1.data.split", "test"),
        ("stages.1.steps", 7),
        ("stages.1.batch", {"global": 16}),
    ],
)
def test_what_changes_the_result_changes_the_hash(path, value):
    assert hash_of(changed(path, value)) != hash_of(JOB)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "other"),
        ("cluster.slots", 8),
        ("parallel.zero", 3),
        ("batch.micro", 2),
        ("model.attention", "sdpa"),
        ("stages.0.lr", 1.0),
        ("stages.1.data.source", "/moved/a.jsonl"),
        ("stages.1.log_every", 1),
        ("stages.1.checkpoint_every", 5),
        ("stages.1.keep", 3),
        ("stages.1.gate", {"accuracy": 0.9}),
        ("stages.1.batch", {"micro": 2}),
        ("stages.1.a_new_optional_field", None),
    ],
)
def test_layout_paths_and_watching_do_not_change_the_hash(path, value):
    assert hash_of(changed(path, value)) == hash_of(JOB)


def test_data_and_parents_change_the_hash():
    known = {hash_of(JOB), hash_of(JOB, fingerprint="g"), hash_of(JOB, model="n"), hash_of(JOB, model="m", reward="r")}
    assert len(known) == 4


def test_the_stage_is_found_by_name_or_by_kind():
    assert hash_of(JOB, "pretrain") != hash_of(JOB, "tune")
    with pytest.raises(KeyError):
        hash_of(JOB, "sft")


def test_parents_are_read_from_the_order():
    assert parent_stages(ORDER) == {"model": "pretrain"}
    base = replace(ORDER, model="base/model")
    assert parent_stages(base) == {}


def test_a_base_model_with_other_weights_gives_another_hash(tmp_path):
    run = RunDir(tmp_path / "job" / "id")
    order = replace(ORDER, model="base/model")
    write_json(run.stage("tune").prepared, {"fingerprint": "f"})
    write_atomic(run.base / "model" / "config.json", "{}")
    write_atomic(run.base / "model" / "model.safetensors", "a" * 3_000_000)
    before = stage_inputs(run, JOB, order)
    write_atomic(run.base / "model" / "notes.txt", "not a weight")
    assert stage_inputs(run, JOB, order) == before
    write_atomic(run.base / "model" / "model.safetensors", "a" * 2_999_999 + "b")
    assert stage_inputs(run, JOB, order) != before


def test_a_model_folder_is_named_by_content_not_by_place(tmp_path):
    for name in ("one", "two"):
        write_atomic(tmp_path / name / "model.safetensors", "weights")
    assert weights_fingerprint(tmp_path / "one") == weights_fingerprint(tmp_path / "two")
