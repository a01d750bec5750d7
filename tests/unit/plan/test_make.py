"""JobSpec -> Plan: what is chosen, why, and what is said when nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.errors import LauncherError
from launcher.plan.plan import Plan
from launcher.units import GIB, MIB

SOURCE = {"model": {"source": "owner/llama"}, "batch.global": 64, "stages.0.data.max_tokens": 512}


def only(plan: Plan):
    (stage,) = plan.stages
    return stage


def codes(stage):
    return [reason.code for reason in stage.reasons]


def test_two_cpu_processes_share_the_rows_in_fp32(make_job, plan):
    stage = only(plan(make_job()))
    assert (stage.world, stage.dp, stage.tp, stage.pp, stage.sp) == (2, 2, 1, 1, 1)
    assert (stage.micro_batch, stage.grad_accum, stage.global_batch) == (16, 1, 32)
    assert (stage.zero, stage.precision, stage.checkpointing) == (1, "fp32", "none")


def test_one_cpu_process_needs_no_zero(make_job, plan, cpu):
    stage = only(plan(make_job({"cluster.slots": 1}), machine=cpu))
    assert (stage.world, stage.zero) == (1, 0)
    assert "zero.fastest" in codes(stage)


def test_sixteen_bit_is_never_planned_at_zero_0(make_job, plan, gpus):
    alone = replace(gpus, slots=1)
    stage = only(plan(make_job(), machine=alone))
    assert (stage.precision, stage.zero) == ("bf16", 1)
    assert "zero.16_bit_needs_1" in codes(stage)
    assert [item.code for item in stage.rejected if item.plan.startswith("ZeRO-0")] == ["E205"]


def test_zero_0_that_is_asked_for_is_planned_in_fp32(make_job, plan, gpus):
    stage = only(plan(make_job({"parallel.zero": 0}), machine=gpus))
    assert (stage.precision, stage.zero) == ("fp32", 0)
    assert "precision.zero_0" in codes(stage)


def test_an_old_gpu_gets_fp16_at_zero_1(make_job, plan, gpus):
    stage = only(plan(make_job(), machine=replace(gpus, gpu="v100-32gb", bf16=False)))
    assert (stage.precision, stage.zero) == ("fp16", 1)


def test_a_7b_model_on_eight_gpus_fits_without_zero_3(make_job, plan, gpus, llama):
    stage = only(plan(make_job(SOURCE), machine=gpus, shape=llama))
    assert stage.zero == 1
    passed_over = {item.plan.split(", micro")[0] for item in stage.rejected if item.code in ("slower", "tie")}
    assert {"ZeRO-2, full checkpointing", "ZeRO-3"} <= passed_over
    assert stage.num_params == 6_738_415_616
    assert stage.memory.p_fit >= 0.9
    assert stage.micro_batch * stage.grad_accum * stage.dp == stage.global_batch == 64


def test_a_7b_model_on_eight_small_gpus_needs_zero_3(make_job, plan, gpus, llama):
    stage = only(plan(make_job(SOURCE), machine=replace(gpus, gpu="a10g-24gb", memory_bytes=24 * GIB), shape=llama))
    assert (stage.zero, stage.dp) == (3, 8)
    too_large = [item.plan for item in stage.rejected if item.code == "E210"]
    assert any(plan.startswith("ZeRO-1, micro-batch 1") for plan in too_large)
    assert all(item.text for item in stage.rejected)


def test_offload_comes_last(make_job, plan, gpus, llama):
    stage = only(plan(make_job(SOURCE), machine=replace(gpus, slots=1), shape=llama))
    assert stage.offload_optimizer == "cpu"
    assert "offload.needed" in codes(stage)
    assert stage.memory.host_peak_bytes > 16 * stage.num_params


def test_offload_is_not_planned_into_a_host_that_is_too_small(make_job, plan, gpus, llama):
    small_host = replace(gpus, slots=1, host_memory_bytes=64 * GIB)
    with pytest.raises(LauncherError) as caught:
        plan(make_job(SOURCE), machine=small_host, shape=llama)
    assert caught.value.problems[0].code == "E210"


def test_what_is_pinned_is_kept_and_said_so(make_job, plan, gpus, llama):
    asked = SOURCE | {"parallel": {"zero": 3, "checkpointing": "full"}, "batch.micro": 2, "precision": "bf16"}
    stage = only(plan(make_job(asked), machine=gpus, shape=llama))
    assert (stage.zero, stage.checkpointing, stage.micro_batch, stage.grad_accum) == (3, "full", 2, 4)
    assert {"zero.asked", "checkpointing.asked", "batch.asked", "precision.asked"} <= set(codes(stage))


def test_every_number_has_a_reason(make_job, plan, ppo_chain):
    for stage in plan(make_job(stages=ppo_chain)).stages:
        kinds = {code.split(".")[0] for code in codes(stage)}
        assert {"world", "zero", "precision", "checkpointing", "batch", "max_tokens", "checkpoints"} <= kinds


def test_no_plan_fits_names_the_smallest_change_that_works(make_job, plan, cpu):
    tiny_machine = replace(cpu, memory_bytes=570 * MIB)
    asked = {"stages.0.data.max_tokens": 512, "batch.micro": 16}
    with pytest.raises(LauncherError) as caught:
        plan(make_job(asked), machine=tiny_machine)
    assert caught.value.exit_code == 3
    assert caught.value.text() == (
        "job.yaml:9:1 [E210] stages.sft: no plan fits: at least 626.9 MiB a rank, 570.0 MiB are there\n"
        "  hint: leave batch.micro out: a smaller micro-batch fits"
    )
    assert plan(make_job({"stages.0.data.max_tokens": 512}), machine=tiny_machine).stages


def test_the_longest_row_that_fits_is_named_and_the_next_one_does_not_fit(make_job, plan, gpus, llama):
    model = {"source": "owner/llama", "attention": "eager", "adapter": {"kind": "lora"}}
    asked = SOURCE | {"batch": {"global": 8}, "model": model}
    machine = replace(gpus, slots=1, gpu="a10g-24gb", memory_bytes=18 * GIB, host_memory_bytes=24 * GIB)
    with pytest.raises(LauncherError) as caught:
        plan(make_job(asked | {"stages.0.data.max_tokens": 4096}), machine=machine, shape=llama)
    hint = caught.value.problems[0].hint
    assert hint.startswith("use data.max_tokens ")
    assert hint.endswith(" instead of 4096")
    tokens = int(hint.split()[2])
    assert plan(make_job(asked | {"stages.0.data.max_tokens": tokens}), machine=machine, shape=llama).stages
    with pytest.raises(LauncherError):
        plan(make_job(asked | {"stages.0.data.max_tokens": tokens + 64}), machine=machine, shape=llama)


def test_checkpoints_rest_on_the_host_where_it_is_asked_and_where_nothing_else_fits(make_job, plan, gpus, llama):
    one, long = replace(gpus, slots=1, memory_bytes=53 * GIB), replace(llama, positions=65_536)
    asked = SOURCE | {"stages.0.data.max_tokens": 65_536, "batch.global": 1, "model.adapter": {"kind": "lora"}}
    with pytest.raises(LauncherError) as caught:
        plan(make_job(asked | {"parallel.checkpointing": "full", "parallel.tensor": 1}), machine=one, shape=long)
    assert caught.value.problems[0].hint == "leave parallel and batch.micro out: the plan finds a layout that fits"
    for free in ({}, {"parallel.zero": 3}, {"parallel.checkpointing": "offload"}):
        stage = only(plan(make_job(asked | free), machine=one, shape=long))
        assert stage.checkpointing == "offload"
        assert stage.memory.host_peak_bytes > 32 * 4096 * 2 * 65_536
        assert ("checkpointing.last" in codes(stage)) == ("parallel.checkpointing" not in free)


def test_no_plan_fits_suggests_more_gpus_where_nothing_else_helps(make_job, plan, gpus, llama):
    one = replace(gpus, slots=1, host_memory_bytes=64 * GIB)
    pretrain = [{"kind": "pretrain", "data": {"source": "python-docs", "max_tokens": 512}}]
    with pytest.raises(LauncherError) as caught:
        plan(make_job({"model": {"source": "owner/llama"}}, stages=pretrain), machine=one, shape=llama)
    assert caught.value.problems[0].hint == "use 2 GPUs of this kind instead of 1"


def test_a_model_that_can_never_fit_says_so(make_job, plan, cpu):
    with pytest.raises(LauncherError) as caught:
        plan(make_job(), machine=replace(cpu, memory_bytes=100 * MIB))
    assert caught.value.problems[0].hint == "use a smaller model or a device with more memory"


def test_a_tight_plan_is_taken_only_when_nothing_is_safer_and_says_so(make_job, plan, cpu):
    safe = only(plan(make_job())).memory
    tight = replace(cpu, memory_bytes=int(safe.peak_bytes * 1.02))
    stage = only(plan(make_job({"batch.micro": 16, "parallel.checkpointing": "none", "parallel.zero": 1}), machine=tight))
    assert 0.5 <= stage.memory.p_fit < 0.9
    assert "memory.tight" in codes(stage)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(make_job, plan, cpu):
    with pytest.raises(LauncherError) as caught:
        plan(make_job(), machine=replace(cpu, disk_free_bytes=5 * MIB))
    assert caught.value.text() == (
        "job.yaml:9:1 [E211] stages: 6.4 MiB of checkpoints and artifacts, 5.0 MiB are free where the run folder lies\n"
        "  hint: free 1.4 MiB, or choose another disk with --runs; stage sft takes the most"
    )
    assert 6 * MIB < plan(make_job(), machine=replace(cpu, disk_free_bytes=7 * MIB)).disk_bytes < 7 * MIB


def test_of_several_hosts_the_one_whose_disk_is_too_small_is_named(make_job, plan, cpu):
    with pytest.raises(LauncherError, match=r"5\.0 MiB are free where the run folder lies on node2\n"):
        plan(make_job(), machine=replace(cpu, disk_free_bytes=5 * MIB, disk_host="node2"))


def test_more_kept_checkpoints_need_more_disk(make_job, plan):
    one, three = (only(plan(make_job({"stages.0.keep": keep}))) for keep in (1, 3))
    checkpoint = 12 * one.num_params  # master copy and two moments
    assert three.memory.disk_bytes - one.memory.disk_bytes == 2 * checkpoint


def test_an_absurd_batch_that_only_1_divides_is_planned_at_once(make_job, plan):
    """A prime near 10^9: whoever tries every number below it is busy for minutes."""
    stage = only(plan(make_job({"batch.global": 999_999_937, "cluster.slots": 1})))
    assert (stage.micro_batch, stage.grad_accum) == (1, 999_999_937)


@pytest.mark.parametrize(("steps", "every"), [(400, 80), (80, 25), (3, 25), (None, 500)])
def test_about_five_checkpoints_a_stage(make_job, plan, steps, every):
    assert only(plan(make_job({"stages.0.steps": steps}))).checkpoint_every == every


def test_max_tokens_defaults_to_what_the_positions_leave(make_job, plan, ppo_chain):
    for stage in ppo_chain:
        del stage["data"]["max_tokens"]
    planned = plan(make_job(stages=ppo_chain))
    assert [stage.max_tokens for stage in planned.stages] == [512, 512, 480]


def test_an_adapter_trains_little_and_nf4_does_not_reach_ppo(make_job, plan, ppo_chain):
    changes = {"model.adapter": {"kind": "lora", "rank": 8}, "model.quantize": "nf4"}
    sft, reward, ppo = plan(make_job(changes, stages=ppo_chain)).stages
    assert sft.num_trainable < sft.num_params / 5
    assert reward.num_trainable == sft.num_trainable + 64
    assert "quantize.nf4" in codes(sft)
    assert "quantize.nf4" in codes(reward)
    assert "quantize.not_in_ppo" in codes(ppo)


def test_the_same_input_gives_the_same_plan(make_job, plan, ppo_chain):
    assert plan(make_job(stages=ppo_chain)) == plan(make_job(stages=ppo_chain))


def test_the_plan_as_json_keeps_its_promised_names(make_job, plan):
    found = plan(make_job()).as_dict()
    assert set(found) == {"schema", "job", "calibration", "machine", "stages"}
    (stage,) = found["stages"]
    promised = (
        "name world dp tp pp sp zero offload precision checkpointing micro_batch grad_accum global_batch memory time cost"
    )
    assert set(f"{promised} reasons rejected".split()) <= set(stage)
    assert {"step_s", "parts", "tokens_per_s", "mfu", "total_s"} <= set(stage["time"])
    assert {"compute", "communication", "bubble", "optimizer"} <= set(stage["time"]["parts"])
    assert sum(stage["time"]["parts"].values()) == pytest.approx(stage["time"]["step_s"])
    assert set(stage["cost"]) == {"currency", "amount", "kwh", "co2_kg"}
