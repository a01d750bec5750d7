"""Degrees that are asked: what they make of ranks, ZeRO, batch, memory and reasons."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace

import pytest

from launcher.errors import LauncherError
from launcher.plan.explain import plan_text
from launcher.plan.legality.nearest import divisors_of, splits_of
from launcher.units import GIB

SOURCE = {"model": {"source": "owner/llama"}, "batch.global": 64, "stages.0.data.max_tokens": 512}


def only(plan):
    (stage,) = plan.stages
    return stage


def reasons(stage):
    return {reason.code: reason.text for reason in stage.reasons}


@pytest.mark.parametrize(
    ("degrees", "counted"),
    [
        ({"tensor": 2}, (4, 2, 1, 1)),
        ({"pipeline": 2}, (4, 1, 2, 1)),
        ({"sequence": 2}, (4, 1, 1, 2)),
        ({"tensor": 2, "pipeline": 2}, (2, 2, 2, 1)),
        ({"tensor": 4, "pipeline": 2}, (1, 4, 2, 1)),
    ],
)
def test_the_rest_of_the_ranks_is_data_parallel_and_the_batch_counts_replicas(make_job, plan, gpus, degrees, counted):
    stage = only(plan(make_job({"parallel": degrees}), machine=gpus))
    assert (stage.dp, stage.tp, stage.pp, stage.sp) == counted
    assert stage.world == 8
    assert stage.micro_batch * stage.grad_accum * stage.dp == stage.global_batch == 32
    assert {"degrees.asked", "zero.pipeline_needs_1"} - set(reasons(stage)) <= {"zero.pipeline_needs_1"}


@pytest.mark.parametrize("world", [1, 2, 12, 97, 360, 1024])
def test_degrees_are_all_that_divide_the_ranks(world):
    whole = range(1, world + 1)
    assert divisors_of(world) == [degree for degree in whole if world % degree == 0]
    every = [
        (tp, pp, sp)
        for tp, pp in ((tp, pp) for tp in divisors_of(world) for pp in divisors_of(world))
        for sp in divisors_of(world)
        if world % (tp * pp * sp) == 0 and (sp == 1 or tp * pp == 1)
    ]
    assert list(splits_of(world)) == every


@pytest.mark.parametrize("changes", [{}, {"objective": "cost"}, {"parallel": {"tensor": 3}}, {"batch.global": 1000}], ids=str)
def test_a_hundred_million_ranks_are_planned_or_refused_without_counting_to_their_number(make_job, plan, gpus, llama, changes):
    """Seconds of CPU, not minutes; the limit only excludes that ranks are gone through one by one."""
    many = replace(gpus, slots=1024, devices=tuple(range(1024)), nodes=100_000)
    job = make_job(SOURCE | {"batch.global": 1024 * 100_000} | changes)
    began = time.process_time()
    with nullcontext() if set(changes) <= {"objective"} else pytest.raises(LauncherError):
        plan(job, machine=many, shape=llama)
    assert time.process_time() - began < 30


def test_auto_stays_data_parallel(make_job, plan, gpus, llama):
    stage = only(plan(make_job(SOURCE), machine=replace(gpus, memory_bytes=22 * GIB), shape=llama))
    assert (stage.dp, stage.tp, stage.pp, stage.sp) == (8, 1, 1, 1)
    assert "degrees.asked" not in reasons(stage)


def test_a_pipeline_runs_at_zero_1_whatever_would_be_smaller_elsewhere(make_job, plan, cpu, gpus, llama):
    alone = only(plan(make_job({"parallel.pipeline": 2}), machine=cpu))
    assert (alone.dp, alone.zero, alone.precision) == (1, 1, "fp32")
    small = only(plan(make_job(SOURCE | {"parallel.pipeline": 4}), machine=replace(gpus, memory_bytes=40 * GIB), shape=llama))
    assert small.zero == 1
    assert "zero.pipeline_needs_1" in reasons(small)


def test_a_pipeline_gets_as_many_micro_batches_as_it_has_stages(make_job, plan, gpus, llama):
    stage = only(plan(make_job(SOURCE | {"parallel.pipeline": 4}), machine=gpus, shape=llama))
    assert stage.grad_accum >= 4
    idle = 3 / (stage.grad_accum + 3)
    assert reasons(stage)["pipeline.bubble"].endswith(f"= {idle:.0%} of the time")
    assert reasons(stage)["pipeline.split"].startswith("blocks 8 + 8 + 8 + 8: ")


def test_a_pipeline_that_the_batch_cannot_fill_says_so(make_job, plan, gpus):
    stage = only(plan(make_job({"parallel.pipeline": 2, "batch.global": 4}), machine=gpus))
    assert (stage.dp, stage.grad_accum) == (4, 1)
    assert "would need a larger batch.global" in reasons(stage)["pipeline.bubble"]


def test_a_pipeline_cut_by_time_says_that_the_ranks_measure(make_job, plan, gpus):
    stage = only(plan(make_job({"parallel": {"pipeline": 2, "balance": "time"}}), machine=gpus))
    assert "the ranks measure" in reasons(stage)["pipeline.measured"]


def test_sequence_ranks_share_the_states_as_data_parallel_ranks_do(make_job, plan, gpus, llama):
    """DeepSpeed partitions over the sequence and data ranks together."""
    shared = only(plan(make_job(SOURCE | {"parallel": {"sequence": 8, "zero": 1}}), machine=gpus, shape=llama))
    spread = only(plan(make_job(SOURCE | {"parallel": {"zero": 1}}), machine=gpus, shape=llama))
    assert shared.dp == 1
    assert shared.memory.parts["optimizer"] == spread.memory.parts["optimizer"]
    assert "ZeRO splits over all 8 ranks" in reasons(shared)["sequence.shared"]


def test_two_sequence_ranks_are_no_lone_rank(make_job, plan, cpu):
    assert only(plan(make_job({"parallel.sequence": 2}), machine=cpu)).zero == 1


def test_a_stage_has_its_own_layout_as_a_whole(make_job, plan, gpus):
    data = {"source": "python-docs", "max_tokens": 128}
    stages = [{"kind": "pretrain", "data": data}, {"kind": "sft", "data": data, "parallel": {"zero": 2}}]
    first, second = plan(make_job({"parallel": {"tensor": 2, "checkpointing": "full"}}, stages=stages), machine=gpus).stages
    assert (first.tp, first.checkpointing) == (2, "full")
    assert (second.tp, second.zero, second.checkpointing) == (1, 2, "none")


def test_auto_in_a_stage_leaves_the_choice_to_the_plan(make_job, plan, gpus):
    stage = only(plan(make_job({"parallel": {"tensor": 2}, "stages.0.parallel": "auto"}), machine=gpus))
    assert (stage.dp, stage.tp) == (8, 1)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"hpz": 4}, "hpz"),
        ({"quantized_weights": True}, "quantized_weights"),
        ({"offload": {"optimizer": "cpu", "ratio": 0.5}}, "offload.ratio"),
        ({"offload": {"optimizer": "nvme", "nvme_path": "/scratch"}}, "offload.optimizer"),
    ],
)
def test_a_setting_that_only_zero_3_reads_asks_for_it(make_job, plan, gpus, asked, named):
    stage = only(plan(make_job({"parallel": asked}), machine=gpus))
    assert stage.zero == 3
    assert reasons(stage)["zero.setting_needs_3"].startswith(f"ZeRO-3 because only it reads {named}: ")


def test_nvme_is_planned_only_where_it_is_asked_for(make_job, plan, gpus, llama):
    one = replace(gpus, slots=1)
    chosen = only(plan(make_job(SOURCE), machine=one, shape=llama))
    asked = SOURCE | {"parallel": {"offload": {"optimizer": "nvme", "nvme_path": "/scratch"}}}
    swapped = only(plan(make_job(asked), machine=one, shape=llama))
    assert (chosen.offload_optimizer, swapped.offload_optimizer) == ("cpu", "nvme")
    assert reasons(swapped)["offload.asked"] == "optimizer on NVMe: as parallel.offload asks"
    assert "optimizer" not in swapped.memory.parts
    assert swapped.memory.host_peak_bytes < chosen.memory.host_peak_bytes


def test_parameters_on_nvme_are_planned_where_they_are_asked_for(make_job, plan, gpus, llama):
    asked = SOURCE | {"parallel": {"offload": {"optimizer": "nvme", "parameters": "nvme", "nvme_path": "/scratch"}}}
    stage = only(plan(make_job(asked), machine=gpus, shape=llama))
    assert (stage.zero, stage.offload_optimizer, stage.offload_parameters) == (3, "nvme", "nvme")
    assert reasons(stage)["offload.asked"] == "optimizer on NVMe and parameters on NVMe: as parallel.offload asks"
    assert stage.largest_shard == llama.vocab * llama.hidden // 8
    assert {"parameters", "optimizer"}.isdisjoint(stage.memory.parts)
    assert stage.memory.nvme_bytes == pytest.approx(18 * stage.num_params / 8, rel=1e-3)


def test_no_plan_fits_suggests_data_parallelism_where_that_helps(make_job, plan, gpus, llama):
    asked = SOURCE | {"parallel": {"pipeline": 2, "zero": 1, "checkpointing": "none"}}
    tight = replace(gpus, memory_bytes=18 * GIB)
    with pytest.raises(LauncherError, match=r"leave parallel and batch\.micro out: the plan finds a layout that fits"):
        plan(make_job(asked), machine=tight, shape=llama)


def test_the_text_shows_degrees_only_where_there_are_any(make_job, plan, gpus):
    assert "ranks = dp" not in plan_text(plan(make_job(), machine=gpus))
    text = plan_text(plan(make_job({"parallel": {"tensor": 2, "pipeline": 2}}), machine=gpus))
    assert "ranks = dp x tp x pp x sp" in text
    assert "8 = 2 x 2 x 2 x 1" in text


def test_one_batch_for_stages_with_other_replicas_names_once_what_they_need_together(make_job, plan, gpus):
    rows = {"source": "python-docs", "max_tokens": 64}
    stages = [
        {"kind": "pretrain", "data": rows},
        {"kind": "sft", "data": rows, "parallel": {"zero": 3}},
    ]
    job = make_job({"parallel": {"tensor": 2}, "batch.global": 12}, stages=stages)
    with pytest.raises(LauncherError) as error:
        plan(job, machine=gpus)
    [problem] = error.value.problems

    assert (problem.code, problem.hint) == ("E204", "use 16 (nearest) or 8")
    assert "12 is not a multiple of 8, which its stages need together (pretrain 4, sft 8" in problem.what
    assert plan(make_job({"parallel": {"tensor": 2}, "batch.global": 16}, stages=stages), machine=gpus)


def test_a_batch_smaller_than_the_ranks_is_planned_with_degrees(make_job, plan, gpus, llama):
    """Eight replicas cannot share four rows; fewer replicas of several ranks can."""
    stage = only(plan(make_job(SOURCE | {"batch.global": 4}), machine=gpus, shape=llama))
    assert stage.world == 8
    assert stage.dp * stage.tp * stage.pp * stage.sp == 8
    assert 4 % stage.dp == 0


def test_a_batch_that_no_degrees_can_share_is_refused_with_the_nearest(make_job, plan, gpus, llama):
    quantized = {"batch.global": 4, "model.adapter": {"kind": "lora"}, "model.quantize": "nf4"}
    with pytest.raises(LauncherError, match=r"E204.*4 is not a multiple of data-parallel = 8"):
        plan(make_job(SOURCE | quantized), machine=gpus, shape=llama)
