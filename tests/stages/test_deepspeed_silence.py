"""The reason for `launcher lint`: the installed DeepSpeed accepts these configs without a word, lint refuses each of them."""

from __future__ import annotations

import json
import logging

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from launcher.dsconfig.lint import is_warning, lint_config

GOOD = {"train_batch_size": 8, "zero_optimization": {"stage": 1}}
SILENT = {
    "zero_optimizaton": {"zero_optimizaton": {"stage": 3}, "zero_optimization": None},
    "gradient_cliping": {"gradient_cliping": 0.5},
    "train_batch_sise": {"train_batch_sise": 16},
    "fp8": {"fp8": {"enabled": True}},
    "pipeline": {"pipeline": {"stags": 4}},
    "aio": {"aio": {"blok_size": 1}},
    "activation_checkpointing": {"activation_checkpointing": {"partition_activation": True}},
    "checkpoint": {"checkpoint": {"wrter": "fast"}},
    "optimizer type": {"optimizer": {"type": "AdmW", "params": {"lr": 1e-3}}},
    "scheduler type": {"scheduler": {"type": "WarmupCosinLR"}},
    "negative clipping": {"gradient_clipping": -1.0},
    "offload_param at ZeRO 2": {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
    "nvme at ZeRO 2 without a path": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
    "super_offload at ZeRO 2": {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "super_offload": True}}
    },
    "hpZ at ZeRO 1": {"zero_optimization": {"stage": 1, "zero_hpz_partition_size": 2}},
    "bf16 at ZeRO 0": {"zero_optimization": {"stage": 0}, "bf16": {"enabled": True}},
    "fp16 at ZeRO 0": {"zero_optimization": {"stage": 0}, "fp16": {"enabled": True}},
    "auto in a section": {"zero_optimization": {"stage": "auto"}},
}


def config_of(name: str) -> dict[str, object]:
    return {key: value for key, value in (GOOD | SILENT[name]).items() if value is not None}


@pytest.mark.parametrize("name", SILENT)
def test_deepspeed_accepts_it_and_lint_does_not(name, caplog):
    config = config_of(name)
    with caplog.at_level(logging.WARNING):
        parsed = DeepSpeedConfig(json.loads(json.dumps(config)))
    assert parsed.train_batch_size == 8
    assert not [record for record in caplog.records if "nknown" in record.getMessage()]
    problems = lint_config(json.dumps(config), file_name="ds.json")
    assert any(not is_warning(problem) for problem in problems)


def test_a_misspelt_zero_section_trains_at_zero_0():
    assert DeepSpeedConfig(config_of("zero_optimizaton")).zero_optimization_stage == 0


def test_a_misspelt_clipping_leaves_the_default():
    assert DeepSpeedConfig(config_of("gradient_cliping")).gradient_clipping == 1.0


def test_a_stage_of_auto_is_stage_0():
    assert DeepSpeedConfig(config_of("auto in a section")).zero_optimization_stage == 0
