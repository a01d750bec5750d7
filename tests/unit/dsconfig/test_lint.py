"""lint: one foreign config for each trap, with the place and the hint; and configs of other projects that are right."""

from __future__ import annotations

import json

import pytest

from launcher.dsconfig.lint import is_warning, lint_config

GOOD = {"train_batch_size": 8, "zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}


def found(config: dict[str, object] | str) -> list[str]:
    text = config if isinstance(config, str) else json.dumps(config)
    return [f"{problem.code} {problem.what.split(':')[0]}" for problem in lint_config(text, file_name="ds.json")]


def texts(config: dict[str, object]) -> str:
    return "\n".join(problem.text() for problem in lint_config(json.dumps(config), file_name="ds.json"))


def test_a_good_config_has_no_problem():
    assert found(GOOD) == []


def test_a_typo_at_the_top_level_is_named_with_what_is_lost_and_what_was_meant():
    problems = lint_config('{\n  "train_batch_size": 8,\n  "zero_optimizaton": {"stage": 2}\n}', file_name="ds.json")
    assert [problem.text() for problem in problems] == [
        "ds.json:3:3 [E303] zero_optimizaton: DeepSpeed does not know it and says nothing: it trains at ZeRO 0: "
        "every GPU holds all optimizer states\n  hint: did you mean zero_optimization?"
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # keys without effect
        ({"gradient_cliping": 0.5}, "E303 gradient_cliping"),
        ({"train_batch_sise": 8}, "E303 train_batch_sise"),
        ({"sequence_parallel_size": 2}, "E303 sequence_parallel_size"),
        ({"fp8": {"enabled": True}}, "E303 fp8"),
        ({"pipeline": {"stags": 2}}, "E303 pipeline.stags"),
        ({"aio": {"blok_size": 1}}, "E303 aio.blok_size"),
        ({"activation_checkpointing": {"partition_activation": True}}, "E303 activation_checkpointing.partition_activation"),
        ({"checkpoint": {"wrter": {}}}, "E303 checkpoint.wrter"),
        ({"checkpoint": {"writer": {"typ": "fast"}}}, "E303 checkpoint.writer.typ"),
        ({"timers": {"thruput": {}}}, "E303 timers.thruput"),
        ({"data_types": {"grad_acum_dtype": "fp32"}}, "E303 data_types.grad_acum_dtype"),
        ({"torch_autocast": {"enabled": False, "dtyp": "bf16"}}, "E303 torch_autocast.dtyp"),
        ({"flops_profiler": {"enable": True}}, "E303 flops_profiler.enable"),
        ({"optimizer": {"type": "AdamW", "parms": {}}}, "E303 optimizer.parms"),
        ({"expert_parallel": {"autoep_sise": 2}}, "E303 expert_parallel.autoep_sise"),
        # keys that stop DeepSpeed
        ({"zero_optimization": {"stage": 2, "reduce_bucket": 1}}, "E304 zero_optimization.reduce_bucket"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            "E304 zero_optimization.offload_optimizer.devise",
        ),
        ({"fp16": {"enabled": False, "los_scale": 0}}, "E304 fp16.los_scale"),
        ({"bf16": {"enable": True}}, "E304 bf16.enable"),
        ({"tensor_parallel": {"enabled": True}}, "E304 tensor_parallel.enabled"),
        ({"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1}}}, "E304 optimizer.params.max_grad_norm"),
        # values
        ({"zero_optimization": {"stage": 4}}, "E305 zero_optimization.stage"),
        ({"zero_optimization": 2}, "E305 zero_optimization"),
        ({"bf16": True}, "E305 bf16"),
        ({"train_batch_size": 0}, "E305 train_batch_size"),
        ({"train_batch_size": "8"}, "E305 train_batch_size"),
        ({"gradient_clipping": "1.0"}, "E305 gradient_clipping"),
        ({"gradient_clipping": -1.0}, "E312 gradient_clipping"),
        # removed
        ({"amp": {"enabled": False}}, "E306 amp"),
        ({"elasticity": {"enabled": False}}, "E306 elasticity"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "E306 zero_optimization.mics_shard_size"),
        # combinations
        ({"zero_optimization": {"stage": 0}}, "E308 bf16"),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": True}, "zero_optimization": {"stage": 0}}, "E308 fp16"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "E309 zero_optimization.offload_param"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}}},
            "E309 zero_optimization.offload_optimizer.device",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "super_offload": True}}},
            "E309 zero_optimization.offload_optimizer.super_offload",
        ),
        ({"zero_optimization": {"stage": 1, "zero_hpz_partition_size": 2}}, "E309 zero_optimization.zero_hpz_partition_size"),
        ({"fp16": {"enabled": True}}, "E313 fp16"),
        # auto
        ({"zero_optimization": {"stage": "auto"}, "bf16": {"enabled": False}}, "E310 zero_optimization.stage"),
        ({"train_batch_size": "auto"}, "E352 train_batch_size"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "E352 optimizer.params.lr"),
        # names
        ({"optimizer": {"type": "AdmW"}}, "E311 optimizer.type"),
        ({"optimizer": {"type": "sgd"}}, "E311 optimizer.type"),
        ({"optimizer": {"type": "OneBitAdam"}}, "E311 optimizer.type"),
        ({"optimizer": {"params": {"lr": 1}}}, "E311 optimizer"),
        ({"scheduler": {"type": "WarmupCosinLR"}}, "E311 scheduler.type"),
        # warnings
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "E351 zero_optimization.cpu_offload"),
        ({"optimizer": {"type": "Adam"}}, "E354 optimizer.type"),
        ({"scheduler": {"type": "WarmupLR"}}, "E354 scheduler.type"),
        ({"zero_optimization": {"stage": 3}}, "E354 zero_optimization"),
        ({"activation_checkpointing": {"partition_activations": True}}, "E353 activation_checkpointing"),
    ],
)
def test_each_trap_is_found(config, expected):
    assert expected in found(GOOD | config)


@pytest.mark.parametrize("name", ["adamw", "AdamW", "ADAMW", "Lion", "SGD", "RMSprop", "Muon", "lamb"])
def test_optimizers_are_taken_as_deepspeed_takes_them(name):
    assert not any(problem.startswith("E311") for problem in found(GOOD | {"optimizer": {"type": name}}))


def test_batch_sizes_that_no_number_of_ranks_can_join_are_refused():
    sizes = {"train_batch_size": 10, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1}
    text = texts(GOOD | sizes)
    assert "[E307] train_batch_size: 10 is not train_micro_batch_size_per_gpu 4 x gradient_accumulation_steps 1 x ranks" in text
    assert "hint: use 12, or leave train_batch_size out" in text
    assert found(GOOD | sizes | {"train_batch_size": 12}) == []


def test_a_config_without_any_batch_size_is_refused():
    assert found({"zero_optimization": {"stage": 1}}) == [
        "E307 neither train_batch_size nor train_micro_batch_size_per_gpu is given"
    ]


def test_duplicate_keys_are_refused_at_the_second_place():
    problems = lint_config('{"train_batch_size": 8,\n "train_batch_size": 16}', file_name="ds.json")
    assert [(problem.code, problem.where) for problem in problems] == [("E302", "ds.json:2:2")]


def test_problems_come_in_the_order_of_the_file():
    text = '{\n"fp8": 1,\n"train_batch_size": 8,\n"gradient_cliping": 1,\n"amp": 1\n}'
    lines = [int(problem.where.split(":")[1]) for problem in lint_config(text, file_name="ds.json")]
    assert lines == [2, 4, 5]


def test_warnings_are_told_from_errors():
    problems = lint_config(json.dumps(GOOD | {"optimizer": {"type": "Adam"}, "fp8": 1}), file_name="ds.json")
    assert [(problem.code, is_warning(problem)) for problem in problems] == [("E354", True), ("E303", False)]


def test_values_of_any_type_anywhere_are_judged_without_a_crash():
    for key in GOOD | {"optimizer": 0, "scheduler": 0, "gradient_clipping": 0, "fp16": 0, "pipeline": 0}:
        for value in (None, True, -1, 1.5, "x", [], [1], {}, {"type": 1}, {"stage": []}, {"device": {}}):
            lint_config(json.dumps(GOOD | {key: value}), file_name="ds.json")


def test_no_zero_at_all_with_bf16_is_zero_0():
    assert "E308 bf16" in found({"train_batch_size": 8, "bf16": {"enabled": True}})


def test_the_config_that_transformers_documents_gives_warnings_only():
    config = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "scheduler": {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
        },
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "offload_param": {"device": "cpu", "pin_memory": True},
            "overlap_comm": True,
            "contiguous_gradients": True,
            "sub_group_size": 1e9,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": 2000,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }
    problems = lint_config(json.dumps(config), file_name="ds.json")
    assert problems
    assert all(is_warning(problem) for problem in problems)
