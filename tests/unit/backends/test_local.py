"""Requests for this machine: what argv and environment they carry, and that a shell reads their text as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from launcher.backends import local, registry
from launcher.backends.request import TOKEN, LaunchRequest
from launcher.errors import LauncherError
from launcher.plan.make import make_plan
from launcher.plan.plan import Machine, Plan
from launcher.plan.shape import shape_of_new
from launcher.rundir.folder import RunDir
from launcher.spec.cluster import COMING, STARTED, ClusterSpec
from launcher.spec.load import open_job_text
from launcher.units import GIB

JOB = """
name: job
model:
  new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}
  tokenizer: {train: {vocab: 512}}
batch: {global: 8}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64}, steps: 10}
"""
CPU = Machine(
    device="cpu",
    slots=2,
    gpu=None,
    memory_bytes=8 * GIB,
    host_memory_bytes=16 * GIB,
    disk_free_bytes=None,
    cores=8,
    bf16=True,
    fp16=False,
)
GPUS = replace(CPU, device="cuda", gpu="h100-80gb", memory_bytes=79 * GIB, slots=2, devices=(0, 1))


def planned(machine: Machine = CPU, *overrides: str):
    loaded = open_job_text(JOB, file_name="job.yaml", folder=Path("."), overrides=overrides)
    new = loaded.job.model.new
    assert new is not None
    return loaded.job, make_plan(loaded.job, machine=machine, shape=shape_of_new(new, 512), places=loaded.places)


def stage_request(machine: Machine = CPU, *overrides: str, path: str = "/runs/job/id") -> LaunchRequest:
    job, plan = planned(machine, *overrides)
    return local.stage_request(job, plan, RunDir(Path(path)), "pretrain", port=23456)


def test_a_stage_goes_through_the_deepspeed_of_this_python():
    request = stage_request()
    assert request.argv == (
        str(Path(sys.executable).parent / "deepspeed"),
        *("--hostfile", "/runs/job/id/rendered/hostfile", "--no_ssh_check"),
        *("--master_addr", "127.0.0.1", "--master_port", "23456"),
        *("--no_local_rank", "--module", "launcher.stages", "train", "/runs/job/id", "pretrain"),
    )
    assert request.world == 2


def test_ranks_on_the_cpu_share_its_cores_and_never_ask_the_hub():
    env = dict(stage_request().env)
    assert (env["DS_ACCELERATOR"], env["OMP_NUM_THREADS"], env["HF_HUB_OFFLINE"]) == ("cpu", "4", "1")
    assert env[TOKEN] == "/runs/job/id"


def test_ranks_on_gpus_use_cuda():
    assert dict(stage_request(GPUS).env)["DS_ACCELERATOR"] == "cuda"


def test_prepare_may_use_the_hub_but_no_gpu():
    job, _ = planned()
    env = dict(local.prepare_request(job, RunDir(Path("/r"))).env)
    assert "HF_HUB_OFFLINE" not in env
    assert env["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("devices", "slots", "hostfile", "include"),
    [
        ((0, 1), 2, "localhost slots=2\n", None),
        ((2, 3), 2, "localhost slots=4\n", "localhost:2,3"),
        ((1,), 1, "localhost slots=2\n", "localhost:1"),
        ((0, 1, 2, 3), 2, "localhost slots=4\n", "localhost:0,1"),
        ((1, 0), 2, "localhost slots=2\n", "localhost:1,0"),
    ],
)
def test_the_gpus_that_are_meant_are_named_to_deepspeed(devices, slots, hostfile, include):
    machine = replace(GPUS, devices=devices, slots=slots)
    request = stage_request(machine)
    named = request.argv[request.argv.index("--include") + 1] if "--include" in request.argv else None
    assert (local.hostfile_text(machine), named) == (hostfile, include)


def test_deepspeeds_own_reader_finds_the_same_slots(tmp_path):
    """It costs two seconds to import; what it makes of our hostfile and --include decides which GPUs train."""
    path = tmp_path / "hostfile"
    path.write_text(local.hostfile_text(replace(GPUS, devices=(2, 3))))
    code = (
        "import json, sys; from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion;"
        "print(json.dumps(parse_inclusion_exclusion(fetch_hostfile(sys.argv[1]), sys.argv[2], '')))"
    )
    argv = [sys.executable, "-c", code, str(path), "localhost:2,3"]
    out = subprocess.run(
        argv, capture_output=True, text=True, check=True, env={"DS_ACCELERATOR": "cpu", "PATH": "/usr/bin:/bin"}
    )
    assert json.loads(out.stdout.splitlines()[-1]) == {"localhost": [2, 3]}


def test_the_users_environment_is_passed_and_wins_where_it_may():
    env = dict(stage_request(CPU, "cluster.env.OMP_NUM_THREADS='3'", "cluster.env.MY_FLAG=a b").env)
    assert (env["OMP_NUM_THREADS"], env["MY_FLAG"]) == ("3", "a b")


@pytest.mark.parametrize("name", ["MASTER_PORT", "RANK", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", TOKEN])
def test_a_variable_that_would_be_overwritten_is_refused(name):
    job, _ = planned(CPU, f"cluster.env.{name}='1'")
    assert [problem.code for problem in local.find_problems(job)] == ["E412"]


HOSTILE = [
    "a b",
    "it's",
    '"quoted"',
    "$(touch canary)",
    "`touch canary`",
    "$HOME",
    "a;touch canary",
    "a&b|c>d<e",
    "*",
    "~",
    "#no comment",
    "back\\slash",
    "-rf",
    "",
    "ünï",
    "a=b",
    "!!",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_shell_reads_the_text_of_a_request_as_its_argv_and_environment(value, tmp_path):
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['VALUE']]))"
    argv = (sys.executable, "-c", show, value, "end")
    text = LaunchRequest(stage="s", argv=argv, env=(("VALUE", value),), world=1).shell_text()
    out = subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(out.stdout) == [[value, "end"], value]
    assert list(tmp_path.iterdir()) == []


def test_a_newline_cannot_get_into_a_request():
    with pytest.raises(LauncherError):
        open_job_text(JOB, file_name="job.yaml", folder=Path("."), overrides=['cluster.env.A="a\\nb"'])


@pytest.mark.parametrize("name", get_args(ClusterSpec.model_fields["backend"].annotation))
def test_every_backend_that_a_job_can_name_offers_what_it_must(name):
    backend = registry.load_backend(name)
    assert all(hasattr(backend, part) for part in ("find_problems", "hostfile_text", "prepare_request", "stage_request"))
    assert isinstance(backend, registry.Starts) == (name in STARTED)
    assert isinstance(backend, registry.Renders) == (name in COMING)
    assert isinstance(backend, registry.Fleets) == (name == "ssh")


def test_a_plan_for_fewer_ranks_than_slots_names_them():
    job, plan = planned(GPUS)
    one = replace(plan, stages=tuple(replace(stage, world=1) for stage in plan.stages))
    assert isinstance(one, Plan)
    request = local.stage_request(job, one, RunDir(Path("/r")), "pretrain", port=1)
    assert request.argv[request.argv.index("--include") + 1] == "localhost:0"
