"""What is found before anything starts: all problems at once."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.errors import LauncherError
from launcher.hosts.machine.gpus import GpuFact
from launcher.plan.make import make_plan
from launcher.rundir.folder import read_json
from launcher.spec.load import open_job_text
from launcher.supervise import preflight
from launcher.supervise.facts import detect_machine, find_shape
from launcher.units import GIB, bytes_text

JOB = """
name: job
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
batch: {global: 8}
stages: [{kind: pretrain, data: {source: ./text.jsonl, max_tokens: 64}, steps: 5}]
"""


@pytest.fixture
def planned(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    loaded = open_job_text(JOB, file_name="job.yaml", folder=tmp_path)
    machine = detect_machine(loaded.job, runs_root=tmp_path, environ={})
    return loaded.job, make_plan(loaded.job, machine=machine, shape=find_shape(loaded.job), places=loaded.places)


def codes(job, plan, writable: Path) -> list[str]:
    with pytest.raises(LauncherError) as caught:
        preflight.check(job, plan, writable=writable)
    assert caught.value.exit_code == 4
    return [problem.code for problem in caught.value.problems]


def test_a_machine_that_is_ready_has_no_problem_even_before_the_runs_folder_is_there(planned, tmp_path):
    preflight.check(*planned, writable=tmp_path / "runs" / "not" / "yet")


def test_everything_that_is_wrong_is_told_at_once(planned, tmp_path, monkeypatch):
    job, plan = planned
    (tmp_path / "text.jsonl").unlink()
    (tmp_path / "runs").write_text("a file, not a folder")
    monkeypatch.setattr(preflight, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 1)
    assert codes(job, plan, tmp_path / "runs") == ["E404", "E407", "E408", "E409"]


def test_a_missing_package_is_named_with_the_command_that_installs_it(planned, monkeypatch):
    monkeypatch.setattr(preflight, "PACKAGES", ("no-such-package",))
    [problem] = preflight.package_problems()
    assert problem.hint == f"{sys.executable} -m pip install no-such-package"


def test_a_deepspeed_command_of_another_python_does_not_count(planned, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert [problem.code for problem in preflight.package_problems()] == ["E407"]


def test_a_gpu_that_somebody_fills_is_named(planned, monkeypatch):

    def gpu(number: int, free_bytes: int) -> GpuFact:
        return GpuFact(number=number, uuid="", name="", total_bytes=80 * GIB, free_bytes=free_bytes, capability=(9, 0))

    job, plan = planned
    cuda = replace(plan, machine=replace(plan.machine, device="cuda", devices=(0, 1)))
    monkeypatch.setattr(preflight, "find_gpus", lambda environ: [gpu(0, 80 * GIB), gpu(1, 1000), gpu(2, 0)])
    assert [problem.where for problem in preflight._memory_problems(job, cuda)] == ["GPU 1"]


def test_a_folder_for_nvme_must_be_there_take_a_file_and_have_room_for_the_swap_files(tmp_path, monkeypatch):
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    missing = tmp_path / "no such disk"
    asked = f"{JOB}parallel: {{offload: {{optimizer: nvme, nvme_path: '{missing}'}}}}\n"
    loaded = open_job_text(asked, file_name="job.yaml", folder=tmp_path)
    machine = detect_machine(loaded.job, runs_root=tmp_path, environ={})
    plan = make_plan(loaded.job, machine=machine, shape=find_shape(loaded.job), places=loaded.places)
    [problem] = preflight._nvme_problems(loaded.job, plan)
    assert problem.text() == (
        f"{missing} [E415] cannot be written: No such file or directory\n"
        f"  hint: make it on a fast local disk (mkdir -p '{missing}'), or name another one in offload.nvme_path"
    )
    missing.mkdir()
    assert preflight._nvme_problems(loaded.job, plan) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    [problem] = preflight._nvme_problems(loaded.job, plan)
    assert problem.what == f"takes 1.0 MiB, swap files need {bytes_text(2 * plan.stages[0].memory.nvme_bytes)}"
    (missing / "zero_stage_3").mkdir()
    (missing / "zero_stage_3" / "0_1.tensor.swp").write_bytes(bytes(2 * plan.stages[0].memory.nvme_bytes))
    assert preflight._nvme_problems(loaded.job, plan) == []


def test_versions_of_all_packages_are_recorded(run):
    preflight.record_versions(run)
    facts = read_json(run.path / "versions.json")
    assert facts["python"] == sys.version.split()[0]
    assert set(preflight.PACKAGES) <= set(facts["packages"])
    assert facts["packages"]["deepspeed"]
