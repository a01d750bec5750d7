"""(job, stage plan) -> DeepSpeed config: complete, explicit, and without the traps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from launcher.dsconfig.lint import lint_config
from launcher.dsconfig.render import ds_config


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_the_config_of_every_zero_stage_pleases_our_own_lint(planned, zero):
    job, plan = planned(parallel={"zero": zero})
    for stage in plan.stages:
        text = json.dumps(ds_config(job, stage))
        assert lint_config(text, file_name="ds.json") == []
        assert "auto" not in text.replace("auto_cast", "")


def test_the_batch_is_written_three_times_and_agrees(planned, gpus):
    job, plan = planned(machine=gpus, batch={"global": 64, "micro": 2})
    config = ds_config(job, plan.stages[0])
    sizes = [config[name] for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")]
    assert sizes == [64, 2, 4]


def test_clipping_is_the_stages_own(planned):
    job, plan = planned()
    assert [ds_config(job, stage)["gradient_clipping"] for stage in plan.stages] == [1.0, 0.5, 1.0, 1.0]


def test_there_is_never_an_optimizer_or_a_scheduler_beside_the_stages_own(planned):
    job, plan = planned()
    assert not {"optimizer", "scheduler"} & set(ds_config(job, plan.stages[0]))


def test_torchs_adamw_is_accepted_and_kept_under_offload(planned, gpus):
    job, plan = planned(machine=gpus, parallel={"zero": 2, "offload": {"optimizer": "cpu"}})
    config = ds_config(job, plan.stages[0])
    assert config["zero_allow_untested_optimizer"] is True
    assert config["zero_force_ds_cpu_optimizer"] is False
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}


def test_zero_3_gathers_weights_on_save_and_has_every_size_written_out(planned):
    job, plan = planned(parallel={"zero": 3})
    zero = ds_config(job, plan.stages[0])["zero_optimization"]
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert (zero["stage3_prefetch_bucket_size"], zero["stage3_param_persistence_threshold"]) == (9 * 64**2 // 10, 640)
    assert all(isinstance(value, int) for name, value in zero.items() if name.endswith(("size", "threshold", "parameters")))


def test_the_bucket_holds_what_is_trained_and_no_more(planned):
    job, plan = planned()
    assert ds_config(job, plan.stages[0])["zero_optimization"]["reduce_bucket_size"] == plan.stages[0].num_trainable


@pytest.mark.parametrize(("precision", "on"), [("fp32", ()), ("bf16", ("bf16",)), ("fp16", ("fp16",))])
def test_one_precision_is_on_and_the_others_are_off(planned, gpus, precision, on):
    job, plan = planned(machine=gpus, precision=precision)
    config = ds_config(job, plan.stages[0])
    assert {name for name in ("bf16", "fp16") if config[name]["enabled"]} == set(on)


def test_the_loss_scale_of_fp16_never_grows(planned, gpus):
    """DeepSpeed halves the gradient in the step where it grows."""
    job, plan = planned(machine=gpus, precision="fp16")
    assert ds_config(job, plan.stages[0])["fp16"]["loss_scale_window"] > 10**9


def test_the_config_depends_on_nothing_but_its_arguments(planned):
    job, plan = planned()
    assert ds_config(job, plan.stages[0]) == ds_config(job, replace(plan.stages[0]))
