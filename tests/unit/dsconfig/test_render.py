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


@pytest.mark.parametrize(
    ("asked", "sums"),
    [
        ({"precision": "bf16", "batch": {"global": 32, "micro": 2}}, {"grad_accum_dtype": "fp32"}),
        ({"precision": "bf16", "batch": {"global": 32, "micro": 4}}, None),
        ({"precision": "bf16", "batch": {"global": 32, "micro": 2}, "parallel": {"pipeline": 2}}, {"grad_accum_dtype": "fp32"}),
        ({"precision": "bf16", "batch": {"global": 32, "micro": 2}, "parallel": {"sequence": 2, "zero": 1}}, None),
        (
            {"precision": "bf16", "batch": {"global": 32, "micro": 2}, "parallel": {"sequence": 2, "zero": 2}},
            {"grad_accum_dtype": "fp32"},
        ),
        ({"precision": "fp32", "batch": {"global": 32, "micro": 2}}, None),
        ({"precision": "fp16", "batch": {"global": 32, "micro": 2}}, None),
    ],
)
def test_gradients_of_several_micro_batches_in_bf16_are_added_up_in_fp32(planned, gpus, asked, sums):
    job, plan = planned(machine=gpus, stages=[{"kind": "sft", "data": {"source": "python-docs", "max_tokens": 96}}], **asked)
    config = ds_config(job, plan.stage("sft"))
    assert config.get("data_types") == sums
    assert [problem for problem in lint_config(json.dumps(config), file_name="ds.json") if "data_types" in problem.what] == []


def test_the_config_depends_on_nothing_but_its_arguments(planned):
    job, plan = planned()
    assert ds_config(job, plan.stages[0]) == ds_config(job, replace(plan.stages[0]))


def test_degrees_leave_the_batch_keys_to_count_replicas(planned, gpus):
    stages = [{"kind": "pretrain", "data": {"source": "python-docs", "max_tokens": 96}}]
    job, plan = planned(machine=gpus, parallel={"tensor": 2, "pipeline": 2}, batch={"global": 64, "micro": 4}, stages=stages)
    config = ds_config(job, plan.stages[0])
    sizes = [config[name] for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")]
    assert sizes == [64, 4, 8]
    assert plan.stages[0].dp == 2
    assert "tensor_parallel" not in config


def test_a_pipeline_has_its_section_and_nothing_else_has(planned, gpus):
    stages = [{"kind": "pretrain", "data": {"source": "python-docs", "max_tokens": 96}}]
    job, plan = planned(machine=gpus, parallel={"pipeline": 2}, stages=stages)
    config = ds_config(job, plan.stages[0])
    assert config["pipeline"] == {
        "activation_checkpoint_interval": 0,
        "use_reentrant": False,
        "pipe_partitioned": False,
        "grad_partitioned": False,
    }
    assert [problem.code for problem in lint_config(json.dumps(config), file_name="ds.json")] == ["E353"]  # a warning
    plain, its_plan = planned(machine=gpus)
    assert "pipeline" not in ds_config(plain, its_plan.stages[0])


def test_settings_of_zero_3_are_rendered_as_deepspeed_reads_them(planned, gpus):
    layout = {"hpz": 4, "quantized_weights": True, "offload": {"optimizer": "cpu", "ratio": 0.25}}
    job, plan = planned(machine=gpus, parallel=layout)
    zero = ds_config(job, plan.stages[0])["zero_optimization"]
    assert (zero["stage"], zero["zero_hpz_partition_size"]) == (3, 4)
    assert (zero["zero_quantized_weights"], zero["zero_quantized_gradients"]) == (True, False)
    of_a_rank = plan.stages[0].num_trainable // plan.stages[0].dp
    assert 32 <= of_a_rank / zero["sub_group_size"] < 33  # the ratio is counted in sub-groups
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True, "ratio": 0.25}
    assert zero["offload_param"] == {"device": "none", "pin_memory": False}


def test_an_optimizer_on_nvme_has_its_path_and_is_not_overlapped(planned, gpus):
    job, plan = planned(machine=gpus, parallel={"offload": {"optimizer": "nvme", "nvme_path": "/scratch"}})
    config = ds_config(job, plan.stages[0])
    offload = config["zero_optimization"]["offload_optimizer"]
    assert (offload["device"], offload["nvme_path"]) == ("nvme", "/scratch")
    assert (offload["pipeline_read"], offload["pipeline_write"]) == (False, False)
    assert lint_config(json.dumps(config), file_name="ds.json") == []


def test_every_tensor_fits_a_buffer_of_parameters_on_nvme_and_none_is_read_ahead_or_kept(planned, gpus):
    model = {"new": {"family": "llama", "layers": 2, "hidden": 4096, "heads": 4, "ffn": 12288, "positions": 512}}
    asked = {"offload": {"parameters": "nvme", "nvme_path": "/scratch"}}
    model["tokenizer"] = {"train": {"vocab": 2048}}
    stages = [{"kind": "sft", "data": {"source": "python-docs", "max_tokens": 96}}]
    job, plan = planned(machine=gpus, parallel=asked, model=model, stages=stages)
    config = ds_config(job, plan.stages[0])
    zero = config["zero_optimization"]
    assert zero["offload_param"] == {
        "device": "nvme",
        "pin_memory": True,
        "nvme_path": "/scratch",
        "max_in_cpu": 0,
        "buffer_count": 5,
        "buffer_size": 4096 * 12288 // 8,
    }
    assert (zero["stage3_prefetch_bucket_size"], zero["stage3_max_reuse_distance"]) == (0, 0)
    assert lint_config(json.dumps(config), file_name="ds.json") == []


def test_a_stage_with_a_layout_of_its_own_has_a_config_of_its_own(planned, gpus):
    data = {"source": "python-docs", "max_tokens": 96}
    stages = [{"kind": "pretrain", "data": data}, {"kind": "sft", "data": data, "parallel": {"zero": 3, "hpz": 2}}]
    job, plan = planned(machine=gpus, parallel={"pipeline": 2}, stages=stages)
    first, second = (ds_config(job, stage) for stage in plan.stages)
    assert ("pipeline" in first, "pipeline" in second) == (True, False)
    assert second["zero_optimization"]["zero_hpz_partition_size"] == 2
