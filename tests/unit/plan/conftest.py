"""One small job, and the machines it is planned for. A test changes the one field it is about."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.cli.goldens import machine_for
from launcher.plan.make import make_plan
from launcher.plan.plan import Machine, Plan
from launcher.plan.shape import ModelShape, shape_from_config, shape_of_new
from launcher.spec.job import JobSpec
from launcher.spec.load import open_job
from launcher.spec.places import Places
from launcher.supervise.facts import find_shape
from launcher.units import GIB

SMALL_JOB: dict[str, Any] = {
    "name": "small",
    "model": {
        "new": {"family": "llama", "layers": 2, "hidden": 64, "heads": 4, "ffn": 192, "positions": 512},
        "tokenizer": {"train": {"vocab": 2048}},
    },
    "batch": {"global": 32},
    "stages": [{"kind": "sft", "data": {"source": "python-docs", "max_tokens": 128}}],
}
PPO_CHAIN = [
    {"kind": "sft", "data": {"source": "python-docs", "max_tokens": 128}},
    {"kind": "reward", "from": "sft", "data": {"source": "python-docs", "max_tokens": 128}},
    {
        "kind": "ppo",
        "from": "sft",
        "reward": "reward",
        "data": {"source": "python-docs", "max_tokens": 96},
        "max_new_tokens": 32,
    },
]
LLAMA_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
}


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with dotted paths set: {"batch.global": 30, "stages.0.lr": 1}."""
    raw = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, key = path.split(".")
        holder: Any = raw
        for parent in parents:
            holder = holder[int(parent)] if isinstance(holder, list) else holder.setdefault(parent, {})
        holder[key] = copy.deepcopy(value)
    return raw


@pytest.fixture
def make_job() -> Callable[..., JobSpec]:
    def job(changes: dict[str, Any] | None = None, **top: Any) -> JobSpec:
        return JobSpec.model_validate_json(json.dumps(changed(SMALL_JOB | top, changes or {})))

    return job


@pytest.fixture
def ppo_chain() -> list[dict[str, Any]]:
    return copy.deepcopy(PPO_CHAIN)


@pytest.fixture
def cpu() -> Machine:
    return Machine(
        device="cpu",
        slots=2,
        gpu=None,
        memory_bytes=4 * GIB,
        host_memory_bytes=8 * GIB,
        disk_free_bytes=None,
        cores=2,
        bf16=True,
        fp16=False,
    )


@pytest.fixture
def gpus(cpu: Machine) -> Machine:
    """Eight H100 with 80 GB in a host of 1 TiB."""
    return replace(cpu, device="cuda", slots=8, gpu="h100-80gb", memory_bytes=79 * GIB, host_memory_bytes=1024 * GIB, fp16=True)


@pytest.fixture
def llama() -> ModelShape:
    return shape_from_config(LLAMA_2_7B, file="config.json")


@pytest.fixture
def plan(cpu: Machine) -> Callable[..., Plan]:
    """Plan a job: on the CPU machine and of its own new model, unless said otherwise."""

    def planned(job: JobSpec, *, machine: Machine = cpu, shape: ModelShape | None = None) -> Plan:
        if shape is None:
            assert job.model.new
            shape = shape_of_new(job.model.new, 2048)
        names = [stage.stage_name for stage in job.stages]
        places = Places(file_name="job.yaml", marks={("stages",): (9, 1)}, stage_names=names)
        return make_plan(job, machine=machine, shape=shape, places=places)

    return planned


@pytest.fixture
def example_plans() -> list[Plan]:
    """Of every job in examples/, on the machine that its golden is made for."""
    plans = []
    for path in sorted((Path(__file__).parents[3] / "examples").glob("*.yaml")):
        loaded = open_job(path)
        machine, shape = machine_for(loaded.job), find_shape(loaded.job)
        plans.append(make_plan(loaded.job, machine=machine, shape=shape, places=loaded.places))
    return plans
