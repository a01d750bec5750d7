"""What nodes take with them is the job and the plan to the last figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.errors import LauncherError
from launcher.plan.away import coming_machine
from launcher.plan.make import make_plan
from launcher.plan.plan import Plan
from launcher.spec.job import JobSpec
from launcher.spec.load import open_job_text
from launcher.supervise.facts import find_shape
from launcher.supervise.sealed import PLANNED, read_sealed, sealed_texts

JOB = """
name: job
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
cluster: {backend: kubernetes, nodes: 2, gpu: h100-80gb, slots: 2, kubernetes: {image: x, claim: runs}, env: {A: "日本 $(B)"}}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64}, steps: 10}
"""


@pytest.fixture
def planned() -> tuple[JobSpec, str, Plan]:
    loaded = open_job_text(JOB, file_name="job.yaml", folder=Path("/nowhere"))
    machine = coming_machine(loaded.job.cluster)
    return loaded.job, JOB, make_plan(loaded.job, machine=machine, shape=find_shape(loaded.job), places=loaded.places)


def write(folder: Path, planned: tuple[JobSpec, str, Plan]) -> None:
    (folder / "rendered").mkdir()
    for path, text in sealed_texts(*planned).items():
        (folder / path).write_text(text, encoding="utf-8")


def test_job_and_plan_come_out_as_they_went_in(tmp_path: Path, planned: tuple[JobSpec, str, Plan]) -> None:
    write(tmp_path, planned)
    job, text, plan = read_sealed(tmp_path)
    assert (job, text) == planned[:2]
    assert plan.machine == planned[2].machine
    assert [(one.zero, one.memory, one.reasons) for one in plan.stages] == [
        (one.zero, one.memory, one.reasons) for one in planned[2].stages
    ]


def test_what_another_version_rendered_is_refused(tmp_path: Path, planned: tuple[JobSpec, str, Plan]) -> None:
    write(tmp_path, planned)
    told = json.loads((tmp_path / PLANNED).read_text())
    (tmp_path / PLANNED).write_text(json.dumps({**told, "launcher": "0.0.9"}))
    with pytest.raises(LauncherError, match=r"E420.*0\.0\.9 rendered the job"):
        read_sealed(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"launcher": "0.1.0"}', '{"launcher": "0.1.0", "plan": {}}'])
def test_a_damaged_plan_is_no_plan(tmp_path: Path, planned: tuple[JobSpec, str, Plan], text: str) -> None:
    write(tmp_path, planned)
    (tmp_path / PLANNED).write_text(text)
    with pytest.raises(LauncherError, match="E510"):
        read_sealed(tmp_path)


def test_a_folder_without_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(LauncherError) as caught:
        read_sealed(tmp_path)
    assert (caught.value.problems[0].code, caught.value.problems[0].where) == ("E510", str(tmp_path))
