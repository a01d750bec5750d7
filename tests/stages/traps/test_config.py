"""What raw DeepSpeed reads without a word and does not do; `launcher lint` refuses each such file."""

from __future__ import annotations

import json
import logging

import deepspeed
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig

from launcher.dsconfig.lint import is_warning, lint_config
from tests.stages.traps.tiny import (
    CLOSE,
    LR,
    ds_config,
    first,
    initialize,
    largest_difference,
    loss_error,
    make_batches,
    make_model,
    meet,
    train_alone,
    train_engine,
    weights_of,
)
from tests.stages.traps.trap import trap

pytestmark = pytest.mark.ranks

GOOD = {"train_batch_size": 8, "zero_optimization": {"stage": 1}}
UNKNOWN = {
    "zero_optimizaton": {"zero_optimizaton": {"stage": 3}, "zero_optimization": None},
    "gradient_cliping": {"gradient_cliping": 0.5},
    "train_batch_sise": {"train_batch_sise": 16},
    "fp8": {"fp8": {"enabled": True}},
    "pipeline": {"pipeline": {"stags": 4}},
    "aio": {"aio": {"blok_size": 1}},
    "activation_checkpointing": {"activation_checkpointing": {"partition_activation": True}},
    "checkpoint": {"checkpoint": {"wrter": "fast"}},
}
WITHOUT_EFFECT = {
    "offload_param at ZeRO 2": {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
    "nvme at ZeRO 2 without a path": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
    "super_offload at ZeRO 2": {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "super_offload": True}}
    },
    "hpZ at ZeRO 1": {"zero_optimization": {"stage": 1, "zero_hpz_partition_size": 2}},
}
REFUSED_LATER_OR_KNOWN = {
    "optimizer type": {"optimizer": {"type": "AdmW", "params": {"lr": 1e-3}}},  # refused by initialize
    "scheduler type": {"scheduler": {"type": "WarmupCosinLR"}},  # refused by initialize
    "negative clipping": {"gradient_clipping": -1.0},  # trap 15
    "bf16 at ZeRO 0": {"zero_optimization": {"stage": 0}, "bf16": {"enabled": True}},  # trap 1
    "fp16 at ZeRO 0": {"zero_optimization": {"stage": 0}, "fp16": {"enabled": True}},  # trap 2
}


def _config(changes):
    return {key: value for key, value in (GOOD | changes).items() if value is not None}


def _taken(changes, caplog):
    """1.0 where DeepSpeed takes the file without a word. Lint must refuse it whatever DeepSpeed does."""
    text = json.dumps(_config(changes))
    assert any(not is_warning(problem) for problem in lint_config(text, file_name="ds.json"))
    with caplog.at_level(logging.WARNING):
        try:
            assert DeepSpeedConfig(json.loads(text)).train_batch_size == 8
        except Exception:  # however a newer DeepSpeed refuses it: it refuses it
            return 0.0
    return float(not [record for record in caplog.records if "nknown" in record.getMessage()])


@trap(39)
@pytest.mark.parametrize("name", UNKNOWN)
def test_a_misspelt_key_is_taken(name, caplog):
    return _taken(UNKNOWN[name], caplog), 0.5


@trap(40)
@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_setting_that_this_zero_stage_does_not_have_is_taken(name, caplog):
    return _taken(WITHOUT_EFFECT[name], caplog), 0.5


@pytest.mark.parametrize("name", REFUSED_LATER_OR_KNOWN)
def test_lint_refuses_what_deepspeed_parses(name, caplog):
    assert _taken(REFUSED_LATER_OR_KNOWN[name], caplog) == 1.0


@trap(41)
def test_a_stage_of_auto_is_taken_as_stage_0(caplog):
    changes = {"zero_optimization": {"stage": "auto"}}
    taken = _taken(changes, caplog)
    return float(taken == 1.0 and DeepSpeedConfig(_config(changes)).zero_optimization_stage == 0), 0.5


def test_a_misspelt_zero_section_trains_at_zero_0():
    assert DeepSpeedConfig(_config(UNKNOWN["zero_optimizaton"])).zero_optimization_stage == 0


def test_a_misspelt_clipping_leaves_the_default():
    assert DeepSpeedConfig(_config(UNKNOWN["gradient_cliping"])).gradient_clipping == 1.0


def _two_optimizers():
    config = ds_config(1, optimizer={"type": "SGD", "params": {"lr": 0.0}})
    model = make_model()
    start = weights_of(model)
    return largest_difference(train_engine(initialize(model, config), make_batches()).weights, start)


@trap(42)
def test_of_an_optimizer_in_the_config_and_one_in_the_call_the_config_loses():
    """The config says a rate of 0."""
    return first(_two_optimizers), CLOSE


def _rates(kind, params):
    model = make_model()
    meet()
    config = ds_config(1, scheduler={"type": kind, "params": params})
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    rates = []
    for rows in make_batches(6):
        rates.append(engine.optimizer.param_groups[0]["lr"])  # what this step uses
        engine.backward(engine(input_ids=rows, labels=rows).loss)
        engine.step()
    return rates


@trap(43)
@pytest.mark.parametrize(("kind", "more"), [("WarmupLR", {}), ("WarmupDecayLR", {"total_num_steps": 10, "warmup_min_lr": 0.0})])
def test_a_warmup_of_the_config_uses_its_first_rate_twice(kind, more):
    params = {"warmup_min_lr": 0.0, "warmup_max_lr": 1.0, "warmup_num_steps": 4, "warmup_type": "linear", **more}
    rates = first(_rates, kind, params)
    assert rates[1:4] == pytest.approx([0.0, 0.25, 0.5])
    return 0.25 - rates[1], 0.1


def _adam(decay_apart):
    model, plain = make_model(), make_model()
    params = {"lr": 1e-2, "weight_decay": 0.5, "torch_adam": True}
    config = ds_config(1, optimizer={"type": "Adam", "params": params})
    meet()
    engine = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)[0]
    kind = torch.optim.AdamW if decay_apart else torch.optim.Adam
    right = train_alone(plain, make_batches(), optimizer=kind(plain.parameters(), lr=1e-2, weight_decay=0.5))
    return loss_error(train_engine(engine, make_batches()), right)


@trap(44)
def test_adam_in_the_config_is_adamw():
    assert first(_adam, True) < CLOSE
    return first(_adam, False), 1e-3
