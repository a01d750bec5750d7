"""Task files of SkyPilot and dstack: one command on every node, secrets by name, the GPU as they call it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from launcher.backends import clouds, registry
from launcher.errors import LauncherError
from launcher.plan.away import coming_machine
from launcher.plan.gpus import GPUS
from launcher.plan.make import make_plan
from launcher.rundir.folder import RunDir
from launcher.spec.load import LoadedJob, open_job_text
from launcher.supervise.facts import find_shape
from launcher.supervise.sealed import SEALED_FILES

JOB = """
name: 7_b
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
cluster: {backend: %s, gpu: %s, slots: 4, nodes: 2, secrets: [HF_TOKEN, WANDB_API_KEY], cloud: {image: team/image:1%s}}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64}, steps: 10}
"""


def loaded(backend: str, *, gpu: str = "h100-80gb", more: str = "") -> LoadedJob:
    return open_job_text(JOB % (backend, gpu, more), file_name="job.yaml", folder=Path("/nowhere"))


def task(backend: str, **how: str) -> dict:
    one = loaded(backend, **how)
    module = registry.load_backend(backend)
    assert isinstance(module, registry.Renders)
    plan = make_plan(one.job, machine=coming_machine(one.job.cluster), shape=find_shape(one.job), places=one.places)
    [text] = module.rendered(one.job, plan, RunDir(Path("/some where/run-1")), dict.fromkeys(SEALED_FILES, "")).values()
    found: dict = yaml.safe_load(text)
    return found


def test_a_task_of_skypilot() -> None:
    assert task("skypilot", more=", volume: runs") == {
        "name": "job-7-b",
        "num_nodes": 2,
        "resources": {
            "accelerators": {"H100": 4},
            "image_id": "docker:team/image:1",
            "job_recovery": {"max_restarts_on_errors": 3},
        },
        "workdir": ".",
        "envs": {"HF_HOME": "/runs/.cache/huggingface"},
        "volumes": {"/runs": "runs"},
        "secrets": {"HF_TOKEN": None, "WANDB_API_KEY": None},
        "run": "python3 -u -P -m launcher node /runs/7_b/run-1 --from .",
    }


def test_a_task_of_dstack() -> None:
    assert task("dstack") == {
        "type": "task",
        "name": "job-7-b",
        "nodes": 2,
        "image": "team/image:1",
        "env": ["HF_HOME=/runs/.cache/huggingface", "HF_TOKEN", "WANDB_API_KEY"],
        "files": [{"local_path": f"../{path}", "path": f"/etc/launcher/{path}"} for path in SEALED_FILES],
        "commands": ["python3 -u -P -m launcher node /runs/7_b/run-1 --from /etc/launcher"],
        "volumes": [{"instance_path": "/runs", "path": "/runs"}],
        "resources": {"gpu": {"name": "H100", "count": 4, "memory": "80GB"}, "shm_size": "16GB"},
        "retry": {"on_events": ["no-capacity", "interruption"]},
    }


@pytest.mark.parametrize("backend", ["skypilot", "dstack"])
def test_the_next_step_is_one_line_for_a_shell(backend: str) -> None:
    module = registry.load_backend(backend)
    assert isinstance(module, registry.Renders)
    words = shlex.split(module.next_step(loaded(backend).job, RunDir(Path("/some where/run-1"))))
    assert any(word.startswith("/some where/run-1") for word in words)


def test_a_gpu_without_a_sure_name_there_has_to_be_named() -> None:
    module = registry.load_backend("skypilot")
    [problem] = module.find_problems(loaded("skypilot", gpu="h100-nvl-94gb").job)
    assert (problem.code, problem.where) == ("E216", "cluster.gpu")
    assert module.find_problems(loaded("skypilot", gpu="h100-nvl-94gb", more=", accelerator: H100-NVL").job) == []
    assert task("dstack", gpu="h100-nvl-94gb", more=", accelerator: H100NVL")["resources"]["gpu"] == {
        "name": "H100NVL",
        "count": 4,
    }


def test_every_name_is_of_a_gpu_in_the_catalogue() -> None:
    assert set(clouds.NAMES) <= set(GPUS)


def test_a_shared_folder_that_a_shell_would_read_is_refused() -> None:
    with pytest.raises(LauncherError, match=r"E106.*runs"):
        loaded("dstack", more=", runs: '/a;id'")
