"""What we render is what the installed DeepSpeed reads: every value arrives, for every ZeRO stage, precision and offload."""

from __future__ import annotations

import json

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from launcher.dsconfig.render import ds_config
from launcher.plan.away import away_machine
from launcher.plan.make import make_plan
from launcher.plan.shape import shape_of_new
from launcher.spec.job import JobSpec
from launcher.spec.places import Places

JOB = {
    "name": "small",
    "model": {
        "new": {"family": "llama", "layers": 2, "hidden": 64, "heads": 4, "ffn": 192, "positions": 512},
        "tokenizer": {"train": {"vocab": 2048}},
    },
    "batch": {"global": 24, "micro": 4},
    "stages": [{"kind": "sft", "data": {"source": "python-docs", "max_tokens": 96}, "clip": 0.25}],
}
LAYOUTS = [
    {"precision": "fp32", "parallel": {"zero": 0}},
    *({"precision": precision, "parallel": {"zero": zero}} for precision in ("fp32", "bf16", "fp16") for zero in (1, 2, 3)),
    {"precision": "bf16", "parallel": {"zero": 2, "offload": {"optimizer": "cpu"}}},
    {"precision": "bf16", "parallel": {"zero": 3, "offload": {"optimizer": "cpu", "parameters": "cpu"}}},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=json.dumps)
def test_deepspeed_reads_every_value_that_we_write(layout):
    job = JobSpec.model_validate_json(json.dumps(JOB | layout))
    assert job.model.new
    machine = away_machine("h100-80gb", slots=1)  # one rank: without a process group DeepSpeed counts one
    places = Places(file_name="job.yaml", marks={})
    stage = make_plan(job, machine=machine, shape=shape_of_new(job.model.new, 2048), places=places).stages[0]
    config = ds_config(job, stage)
    read = DeepSpeedConfig(json.loads(json.dumps(config)))
    sizes = (read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps)
    assert sizes == (24, 4, 6)
    assert read.gradient_clipping == 0.25
    assert (read.bfloat16_config.enabled, read.float16_config.enabled) == (stage.precision == "bf16", stage.precision == "fp16")
    assert read.zero_optimization_stage == stage.zero
    assert (read.optimizer_name, read.scheduler_name) == (None, None)
    assert read.zero_allow_untested_optimizer
    assert not read.zero_force_ds_cpu_optimizer
    assert not read.timers_config.enabled
    assert_equal_section(read.zero_config, config["zero_optimization"])


def assert_equal_section(read: object, written: dict[str, object]) -> None:
    """Every written key, by its alias, in the Pydantic model that DeepSpeed made of it."""
    by_alias = {field.alias or name: name for name, field in type(read).model_fields.items()}
    for key, value in written.items():
        found = getattr(read, by_alias[key])
        if isinstance(value, dict):
            assert_equal_section(found, value)
        else:
            assert getattr(found, "value", found) == value, key
