"""The run folder as it is written: names, rights, and a script that works without this program."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
from datetime import UTC, datetime, timedelta, timezone

import pytest

from launcher.errors import LauncherError
from launcher.plan.make import make_plan
from launcher.rundir.order import read_order
from launcher.spec.job import JobSpec
from launcher.spec.load import open_job_text
from launcher.supervise.create import Planned, commands_text, make_folder, new_run, requests, write_run
from launcher.supervise.facts import detect_machine, find_shape

JOB = """
name: job
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
batch: {global: 8}
cluster: {env: {NOTE: "it's $(touch canary) `x` \\"q\\""}}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64}, steps: 5}
  - {kind: sft, data: {source: python-docs, max_tokens: 64}, steps: 5}
"""


@pytest.fixture
def planned(tmp_path):
    loaded = open_job_text(JOB, file_name="job.yaml", folder=tmp_path)
    machine = detect_machine(loaded.job, runs_root=tmp_path, environ={})
    plan = make_plan(loaded.job, machine=machine, shape=find_shape(loaded.job), places=loaded.places)
    return Planned(job=loaded.job, job_text=loaded.text, plan=plan)


def named(root, *, hour: int = 12, byte: bytes = b"\xab"):
    return new_run(root, "job", now=datetime(2026, 11, 24, hour, tzinfo=UTC), random_bytes=lambda size: byte * size)


def test_run_ids_sort_by_time_and_are_in_utc(tmp_path):
    assert named(tmp_path).path.name == "20261124-120000-ababab"
    east = datetime(2026, 11, 24, 14, tzinfo=timezone(timedelta(hours=2)))
    assert new_run(tmp_path, "job", now=east, random_bytes=lambda size: b"\xab" * size) == named(tmp_path)
    assert named(tmp_path, hour=11, byte=b"\xff").path.name < named(tmp_path, byte=b"\x00").path.name


def test_naming_a_run_makes_nothing(tmp_path):
    named(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_folder_is_for_this_user_alone(tmp_path):
    run = named(tmp_path)
    make_folder(run)
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_a_clear_problem(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(LauncherError) as caught:
        make_folder(named(tmp_path / "runs"))
    [problem] = caught.value.problems
    assert problem.code == "E404"
    assert "--runs" in problem.hint


def test_everything_that_ranks_need_is_written_and_read_back(tmp_path, planned):
    run = named(tmp_path)
    make_folder(run)
    write_run(run, planned)
    assert run.job_yaml.read_text() == JOB
    assert JobSpec.model_validate_json(run.job_json.read_text()) == planned.job
    assert json.loads(run.plan_json.read_text()) == json.loads(json.dumps(planned.plan.as_dict()))
    assert [read_order(run.order(name)).model for name in ("pretrain", "sft")] == ["base/model", "stages/pretrain/artifact"]
    assert json.loads(run.ds_config("sft").read_text())["train_batch_size"] == 8
    assert (run.rendered / "hostfile").read_text() == f"localhost slots={planned.plan.machine.slots}\n"


def test_the_script_passes_a_shells_check_and_holds_the_requests_word_for_word(tmp_path, planned):
    run = named(tmp_path / "a runs 'folder' $(touch canary)")
    text = commands_text(run, planned)
    subprocess.run(["/bin/sh", "-n"], input=text, text=True, check=True, cwd=tmp_path)
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("env ")]
    assert [tuple(words[1 + len(one.env) :]) for words, one in zip(lines, requests(run, planned), strict=True)] == [
        one.argv for one in requests(run, planned)
    ]


def test_the_script_runs_its_commands_with_hostile_paths_and_values(tmp_path, planned):
    """Every command is replaced by one that writes down what it was given; nothing in a name is executed."""
    run = named(tmp_path / "a 'b' $(touch canary)")
    first = requests(run, planned)[0]
    text = commands_text(run, planned).replace(shlex.quote(first.argv[0]), "printenv NOTE; true", 1)
    script = text.split("# pretrain")[0]
    out = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout == planned.job.cluster.env["NOTE"] + "\n"
    assert os.listdir(tmp_path) == []
