"""A planned job: what a config is rendered from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from launcher.plan.away import away_machine
from launcher.plan.make import make_plan
from launcher.plan.plan import Machine, Plan
from launcher.plan.shape import shape_of_new
from launcher.spec.job import JobSpec
from launcher.spec.places import Places

DATA = {"source": "python-docs", "max_tokens": 96}
JOB: dict[str, Any] = {
    "name": "small",
    "model": {
        "new": {"family": "llama", "layers": 2, "hidden": 64, "heads": 4, "ffn": 192, "positions": 512},
        "tokenizer": {"train": {"vocab": 2048}},
    },
    "batch": {"global": 32},
    "stages": [
        {"kind": "pretrain", "data": DATA},
        {"kind": "sft", "data": DATA, "clip": 0.5},
        {"kind": "reward", "name": "judge", "from": "sft", "data": DATA},
        {"kind": "ppo", "from": "sft", "reward": "judge", "data": DATA, "max_new_tokens": 32},
    ],
}
GPUS = away_machine("h100-80gb", slots=8)
CPU = replace(GPUS, device="cpu", slots=2, gpu=None, devices=(), fp16=False)


@pytest.fixture
def planned() -> Callable[..., tuple[JobSpec, Plan]]:
    def make(*, machine: Machine = CPU, **top: Any) -> tuple[JobSpec, Plan]:
        job = JobSpec.model_validate_json(json.dumps(JOB | top))
        assert job.model.new
        places = Places(file_name="job.yaml", marks={})
        return job, make_plan(job, machine=machine, shape=shape_of_new(job.model.new, 2048), places=places)

    return make


@pytest.fixture
def gpus() -> Machine:
    return GPUS
