"""This machine as the planner's arguments: GPUs as the driver tells them, slots, hostfile, model configs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from launcher.errors import LauncherError
from launcher.hosts.machine.capacity import free_disk_bytes, free_memory_bytes, total_memory_bytes, usable_cores, used_bytes
from launcher.hosts.machine.catalogue import catalogue_name
from launcher.hosts.machine.gpus import GpuFact, visible_of
from launcher.spec.job import ClusterSpec
from launcher.spec.load import open_job_text
from launcher.supervise import facts
from launcher.supervise.hostfile import local_slots
from launcher.units import GIB


def gpu(number: int, name: str = "NVIDIA H100 80GB HBM3", gib: float = 79.6, capability: tuple[int, int] = (9, 0)) -> GpuFact:
    return GpuFact(
        number=number,
        uuid=f"GPU-{number}abc",
        name=name,
        total_bytes=int(gib * GIB),
        free_bytes=int(gib * GIB),
        capability=capability,
    )


FOUR = [gpu(number) for number in range(4)]


def numbers(visible: str | None) -> list[int]:
    return [one.number for one in visible_of(FOUR, visible)]


def job(*overrides: str):
    text = "name: job\nmodel: {new: {family: llama, layers: 2, hidden: 64, heads: 4}, tokenizer: {train: {vocab: 512}}}\n"
    text += "stages: [{kind: pretrain, data: {source: python-docs}, steps: 5}]\n"
    return open_job_text(text, file_name="job.yaml", folder=facts.Path("."), overrides=overrides).job


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [0, 1, 2, 3]), ("", []), ("-1", []), ("2,3", [2, 3]), ("1,0", [1, 0]), ("GPU-3", [3]), (" 1 , 1", [1])],
)
def test_visible_devices_choose_gpus(visible, expected):
    assert numbers(visible) == expected


@pytest.mark.parametrize("visible", ["4", "0,9", "MIG-GPU-0/1/2", "gpu0", "GPU-"])
def test_a_device_that_is_not_there_is_an_error_not_a_silent_end_of_the_list(visible):
    with pytest.raises(LauncherError) as caught:
        numbers(visible)
    assert caught.value.problems[0].code == "E410"


@pytest.mark.parametrize(
    ("name", "gib", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.6, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80gb"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090-24gb"),
        ("Tesla V100-SXM2-16GB", 15.8, "v100-16gb"),
        ("NVIDIA H200", 140.0, "h200-141gb"),
        ("NVIDIA Unknown 9000", 10, "NVIDIA Unknown 9000"),
    ],
)
def test_the_drivers_name_becomes_the_catalogues(name, gib, expected):
    assert catalogue_name(gpu(0, name, gib)) == expected


def test_a_gpu_machine_takes_the_smallest_memory_and_the_oldest_capability(monkeypatch, tmp_path):
    mixed = [gpu(0), gpu(1, "Tesla T4", 14.7, (7, 5))]
    monkeypatch.setattr(facts, "find_gpus", lambda environ: mixed)
    machine = facts.detect_machine(job(), runs_root=tmp_path)
    assert (machine.device, machine.slots, machine.devices) == ("cuda", 2, (0, 1))
    assert machine.memory_bytes == mixed[1].total_bytes
    assert (machine.bf16, machine.fp16) == (False, True)


def test_fewer_slots_than_gpus_take_the_first(monkeypatch, tmp_path):
    monkeypatch.setattr(facts, "find_gpus", lambda environ: FOUR)
    assert facts.detect_machine(job("cluster.slots=2"), runs_root=tmp_path).devices == (0, 1)


def test_more_slots_than_gpus_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(facts, "find_gpus", lambda environ: FOUR)
    with pytest.raises(LauncherError) as caught:
        facts.detect_machine(job("cluster.slots=8"), runs_root=tmp_path)
    [problem] = caught.value.problems
    assert problem.code == "E402"
    assert "4" in problem.hint


def test_a_machine_without_gpus_trains_on_its_cores(tmp_path):
    machine = facts.detect_machine(job(), runs_root=tmp_path, environ={"CUDA_VISIBLE_DEVICES": ""})
    assert (machine.device, machine.gpu, machine.devices, machine.fp16) == ("cpu", None, (), False)
    assert 1 <= machine.slots <= 2
    assert machine.memory_bytes * machine.slots <= machine.host_memory_bytes


def test_what_a_run_has_written_counts_as_free(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"x" * 1000)
    assert used_bytes(tmp_path) == 1000
    fresh = facts.detect_machine(job(), runs_root=tmp_path, environ={}).disk_free_bytes
    again = facts.detect_machine(job(), runs_root=tmp_path, environ={}, written_bytes=GIB).disk_free_bytes
    assert again - fresh > GIB // 2


def test_torch_is_never_imported_to_know_the_machine():
    code = "import sys; from launcher.hosts.machine.gpus import find_gpus; find_gpus({}); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_host_figures_are_of_this_host(tmp_path):
    assert 0 < free_memory_bytes() <= total_memory_bytes()
    assert usable_cores() >= 1
    assert free_disk_bytes(tmp_path / "not" / "there") > 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", socket.gethostname()])
def test_a_hostfile_may_name_this_machine(tmp_path, host):
    path = tmp_path / "hosts"
    path.write_text(f"# ours\n{host} slots=3\n")
    assert local_slots(path) == 3
    assert facts.asked_slots(ClusterSpec(hostfile=str(path)), num_gpus=0) == 3
    assert facts.asked_slots(ClusterSpec(hostfile=str(path), slots=2), num_gpus=0) == 2
    with pytest.raises(LauncherError, match="E402"):
        facts.asked_slots(ClusterSpec(hostfile=str(path), slots=4), num_gpus=0)


@pytest.mark.parametrize(
    "text", ["node-1 slots=2\n", "localhost slots=1\nnode-1 slots=1\n", "localhost slots=1\n127.0.0.1 slots=1\n"]
)
def test_a_hostfile_with_other_hosts_is_refused_for_backend_local(tmp_path, text):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(LauncherError) as caught:
        local_slots(path)
    assert {problem.code for problem in caught.value.problems} == {"E403"}


def test_the_vocabulary_of_a_tokenizer_folder_counts_added_tokens(tmp_path):
    tokenizer = {
        "model": {"vocab": {"a": 0, "b": 1}},
        "added_tokens": [{"id": 2, "content": "<end>"}, {"id": 0, "content": "a"}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert facts._vocab(str(tmp_path)) == 3


@pytest.mark.parametrize(("text", "code"), [("{", "E213"), ("[]", "E213"), (None, "E411")])
def test_a_broken_config_of_a_local_model_is_a_clear_problem(tmp_path, text, code):
    folder = tmp_path / "model"
    folder.mkdir()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(LauncherError) as caught:
        facts._json_of(str(folder), "config.json", None, field="model.source")
    assert [problem.code for problem in caught.value.problems] == [code]
