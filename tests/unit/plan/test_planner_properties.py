"""What holds for every plan: more ranks, more memory and smaller micro-batches never make it worse, and parts add up.

Layouts are drawn by hypothesis, whole jobs by a seed. `FEW` keeps the suite short; raise it to look for more.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from launcher.errors import LauncherError
from launcher.plan.away import away_machine
from launcher.plan.cost.fastest import NEARLY
from launcher.plan.cost.of_stage import Clock, Rollout
from launcher.plan.cost.rates import catalogue_rates
from launcher.plan.gpus import GPUS
from launcher.plan.known_shapes import KNOWN_CONFIGS
from launcher.plan.layout import Layout
from launcher.plan.load import Load
from launcher.plan.make import check_plan, make_plan
from launcher.plan.memory import memory_of, p_fit
from launcher.plan.plan import Machine, Plan
from launcher.plan.shape import ModelShape, shape_from_config
from launcher.spec.job import JobSpec
from launcher.spec.model import Lora
from launcher.spec.places import Places
from launcher.units import GIB

FEW = settings(max_examples=40, deadline=None, derandomize=True)
MODELS = {name: shape_from_config(config, file=name) for name, config in KNOWN_CONFIGS.items()}
DENSE = [name for name, shape in MODELS.items() if not shape.experts]
KINDS = ("pretrain", "sft", "reward", "dpo", "ppo")
DATA = {"source": "python-docs", "max_tokens": 256}
SEEDS = range(20)
PADDING = 1.001


@st.composite
def loads(draw: st.DrawFn) -> Load:
    kind, adapter = draw(st.sampled_from(KINDS)), draw(st.sampled_from([None, Lora(rank=8)]))
    answers = 128 if kind == "ppo" else 0
    return Load(
        shape=MODELS[draw(st.sampled_from(DENSE))],
        kind=kind,
        adapter=adapter,
        quantized=adapter is not None and kind not in ("ppo", "pretrain") and draw(st.booleans()),
        eager=draw(st.booleans()),
        row_tokens=2 ** draw(st.integers(7, 13)) + answers,
        answer_tokens=answers,
    )


@st.composite
def layouts(draw: st.DrawFn, load: Load) -> Layout:
    """One that the legality table would let pass, as far as memory and time are concerned."""
    cut = load.kind != "ppo" and not load.quantized
    tp, pp, sp = draw(st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 4, 1), (8, 1, 1), (1, 1, 4)])) if cut else (1, 1, 1)
    zero = 1 if pp > 1 else draw(st.sampled_from([1, 2, 3]))
    return Layout(
        dp=draw(st.sampled_from([1, 2, 4, 8, 64])),
        tp=tp,
        pp=pp,
        sp=sp,
        zero=zero,
        precision=draw(st.sampled_from(["bf16", "fp32", "fp16"])),
        checkpointing=draw(st.sampled_from(["none", "full"])),
        offload_optimizer=draw(st.sampled_from(["none", "cpu"])),
        offload_parameters=draw(st.sampled_from(["none", "cpu"])) if zero == 3 else "none",
        micro_batch=2 ** draw(st.integers(0, 4)),
        grad_accum=draw(st.sampled_from([1, 2, 8, 64])),
        cuda=True,
    )


def peak(load: Load, layout: Layout) -> int:
    return memory_of(load, layout, limit_bytes=80 * GIB).peak_bytes


def clock_of(load: Load, gpu: str = "h100-80gb") -> Clock:
    speeds = catalogue_rates(away_machine(gpu, slots=8)).speeds(away_machine(gpu, slots=8))
    assert speeds is not None
    return Clock(load, speeds, rollout=Rollout(prompts=1024, steps=4) if load.kind == "ppo" else None)


# --- layouts -------------------------------------------------------------------------------------------------------------


@FEW
@given(data=st.data())
def test_twice_the_replicas_need_no_more_memory_on_any_gpu(data):
    """With the same rows for each of them, or with the same rows together. From 1 to 2 a group of ranks is added.

    But for what ZeRO fills up to a multiple of the ranks. A single pass is another matter: nothing is summed there.
    """
    load = data.draw(loads())
    layout = data.draw(layouts(load))
    assume(layout.dp > 1)
    wider = replace(layout, dp=2 * layout.dp)
    assert peak(load, wider) <= PADDING * peak(load, layout)
    if layout.grad_accum > 2:
        assert peak(load, replace(wider, grad_accum=layout.grad_accum // 2)) <= PADDING * peak(load, layout)


@FEW
@given(data=st.data())
def test_memory_grows_with_the_micro_batch_at_the_same_accumulation(data):
    """Tokens of a pass are powers of two here: in between, logits are cut into tiles of equal size, and more are smaller."""
    load = data.draw(loads())
    layout = data.draw(layouts(load))
    assert peak(load, replace(layout, micro_batch=2 * layout.micro_batch)) >= peak(load, layout)


@FEW
@given(data=st.data())
def test_memory_grows_with_the_rows_and_with_the_models_depth(data):
    load = data.draw(loads())
    layout = data.draw(layouts(load))
    longer = replace(load, row_tokens=2 * load.row_tokens - load.answer_tokens)
    assert peak(longer, layout) >= peak(load, layout)
    deeper = replace(load, shape=replace(load.shape, layers=load.shape.layers + 1))
    at_home = replace(layout, offload_parameters="none", pp=1)  # a pipeline is cut elsewhere where there is one block more
    assert peak(deeper, at_home) >= peak(load, at_home)


@FEW
@given(data=st.data())
def test_recomputing_and_offload_need_no_more_memory_on_the_gpu(data):
    load = data.draw(loads())
    layout = data.draw(layouts(load))
    deep = load.shape.layers // layout.pp > 4  # a recomputed block lives beside what all blocks keep of their inputs
    if deep:
        assert peak(load, replace(layout, checkpointing="full")) <= peak(load, replace(layout, checkpointing="none"))
    away, here = (peak(load, replace(layout, offload_optimizer=place)) for place in ("cpu", "none"))
    assert away <= 1.01 * here  # an adapter's optimizer is so small that the buffers of the offload may outweigh it


@FEW
@given(data=st.data())
def test_parts_of_the_memory_are_no_less_than_zero_and_add_up(data):
    load = data.draw(loads())
    memory = memory_of(load, data.draw(layouts(load)), limit_bytes=80 * GIB)
    assert min(memory.parts.values()) >= 0
    assert sum(memory.parts.values()) == memory.peak_bytes
    assert 0 <= memory.p_fit <= 1
    assert memory.host_peak_bytes > 0


@FEW
@given(data=st.data())
def test_parts_of_the_time_are_no_less_than_zero_and_add_up(data):
    load = data.draw(loads())
    layout = data.draw(layouts(load))
    gpu = data.draw(st.sampled_from(sorted(GPUS)))
    time = clock_of(load, gpu).time(layout)
    assert time.step_s > 0
    assert min(time.parts.values()) > -1e-9 * time.step_s
    assert sum(time.parts.values()) == pytest.approx(time.step_s)
    assert all(seconds >= 0 for seconds in time.sent.values())


@FEW
@given(data=st.data())
def test_more_rows_a_step_take_longer_and_more_in_one_pass_no_longer_than_as_many_in_two(data):
    load = data.draw(loads())
    layout = data.draw(layouts(load))
    assume(load.kind != "ppo" and load.row_tokens // layout.sp >= 64)  # below, products are off the tensor cores' grid
    clock = clock_of(load)
    assert clock.time(replace(layout, grad_accum=2 * layout.grad_accum)).step_s > clock.time(layout).step_s
    assert clock.time(replace(layout, micro_batch=2 * layout.micro_batch)).step_s >= clock.time(layout).step_s
    if layout.pp == 1 and layout.grad_accum > 1:
        wide = replace(layout, micro_batch=2 * layout.micro_batch, grad_accum=layout.grad_accum // 2)
        assert clock.time(wide).step_s <= 1.001 * clock.time(layout).step_s


@FEW
@given(st.integers(1, 10**12), st.integers(1, 10**12), st.floats(1, 3))
def test_the_probability_to_fit_grows_with_the_limit_and_falls_with_the_peak(peak_bytes, limit_bytes, more):
    assert 0 <= p_fit(peak_bytes, limit_bytes) <= 1
    assert p_fit(peak_bytes, round(more * limit_bytes)) >= p_fit(peak_bytes, limit_bytes)
    assert p_fit(round(more * peak_bytes), limit_bytes) <= p_fit(peak_bytes, limit_bytes)
    assert p_fit(peak_bytes, peak_bytes) == 0.5
    assert p_fit(peak_bytes, 0) == 0.0


# --- whole jobs ----------------------------------------------------------------------------------------------------------


def job_of(seed: int) -> tuple[JobSpec, Machine, ModelShape]:
    """One stage, or the chain of three for ppo, on some GPUs; everything that a job may pin is pinned in some of them."""
    draw = random.Random(seed)
    model, gpu = (
        draw.choice(DENSE),
        draw.choice(["h100-80gb", "a100-40gb", "a10g-24gb", "h200-141gb", "v100-32gb", "b200-180gb"]),
    )
    slots, nodes = draw.choice([1, 2, 4, 8, 6]), draw.choice([1, 1, 2, 4])
    kind = draw.choice(KINDS)
    data = DATA | {"max_tokens": draw.choice([64, 256, 700, 1024])}
    stages: list[dict[str, Any]] = [{"kind": kind, "data": data}]
    if kind == "ppo":
        stages = [
            {"kind": "sft", "data": data},
            {"kind": "reward", "from": "sft", "data": data},
            {"kind": "ppo", "from": "sft", "reward": "reward", "data": DATA, "max_new_tokens": 64},
        ]
    adapter = {"adapter": {"kind": "lora", "rank": 16}} if draw.random() < 0.5 else {}
    parallel = draw.choice(["auto", "auto", "auto", {"zero": 3}, {"tensor": 2}, {"checkpointing": "full"}, {"zero": 1}])
    text = {
        "name": "drawn",
        "model": {"source": model, **adapter},
        "cluster": {"gpu": gpu, "slots": slots, "nodes": nodes},
        "batch": {"global": slots * nodes * draw.choice([1, 2, 3, 8])},
        "parallel": parallel,
        "objective": draw.choice(["speed", "speed", "cost", "memory"]),
        "stages": stages,
    }
    machine = away_machine(gpu, slots=slots, nodes=nodes)
    return JobSpec.model_validate_json(json.dumps(text)), machine, MODELS[model]


def planned(job: JobSpec, machine: Machine, shape: ModelShape) -> Plan | None:
    """None: refused."""
    names = [stage.stage_name for stage in job.stages]
    try:
        return make_plan(job, machine=machine, shape=shape, places=Places(file_name="job.yaml", marks={}, stage_names=names))
    except LauncherError:
        return None


@pytest.mark.parametrize("seed", SEEDS)
def test_every_plan_uses_its_ranks_and_its_batch_and_says_why(seed):
    job, machine, shape = job_of(seed)
    plan = planned(job, machine, shape)
    for stage in plan.stages if plan else ():
        assert stage.dp * stage.tp * stage.pp * stage.sp == stage.world
        assert stage.world == machine.world or (job.objective == "cost" and machine.world % stage.world == 0)
        assert stage.micro_batch * stage.grad_accum * stage.dp == stage.global_batch
        assert stage.memory.p_fit >= 0.5
        assert stage.memory.peak_bytes <= stage.memory.limit_bytes
        assert stage.reasons
        assert all(item.code and item.text for item in stage.rejected)
        assert sum(stage.time.parts.values()) == pytest.approx(stage.time.step_s)
        assert 0 < stage.time.mfu_causal <= stage.time.mfu < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_job_gives_the_same_plan(seed):
    job, machine, shape = job_of(seed)
    first, again = (planned(job, machine, shape) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("seed", SEEDS)
def test_larger_gpus_of_the_same_speed_never_make_the_plan_slower(seed):
    """By more than the 2 % that count as equal. What fits safely goes on to fit."""
    job, machine, shape = job_of(seed)
    job = job.model_copy(update={"objective": "speed"})
    before = planned(job, machine, shape)
    larger = replace(machine, memory_bytes=int(1.5 * machine.memory_bytes), host_memory_bytes=2 * machine.host_memory_bytes)
    after = planned(job, larger, shape)
    assert before is None or after is not None
    for small, large in zip(before.stages if before else (), after.stages if after else (), strict=False):
        if small.memory.p_fit >= 0.95:
            assert large.memory.p_fit >= 0.95
            assert large.time.step_s <= NEARLY * small.time.step_s


@pytest.mark.parametrize("seed", SEEDS)
def test_faster_gpus_of_the_same_memory_make_the_plan_faster(seed):
    job, machine, shape = job_of(seed)
    if (plan := planned(job.model_copy(update={"objective": "speed"}), machine, shape)) is None:
        return
    gpu = GPUS[machine.gpu]
    twice = replace(
        gpu,
        tflops_16bit=2 * gpu.tflops_16bit,
        memory_gbs=2 * gpu.memory_gbs,
        nvlink_gbs=2 * gpu.nvlink_gbs,
        pcie_gbs=2 * gpu.pcie_gbs,
        nic_gbs=2 * gpu.nic_gbs,
    )
    names = [stage.stage_name for stage in job.stages]
    places = Places(file_name="job.yaml", marks={}, stage_names=names)
    speed = job.model_copy(update={"objective": "speed"})
    faster = make_plan(speed, machine=machine, shape=shape, places=places, rates=catalogue_rates(machine, gpu=twice))
    for slow, fast in zip(plan.stages, faster.stages, strict=True):
        if slow.memory.p_fit >= 0.95:
            assert fast.time.step_s <= NEARLY * slow.time.step_s


@pytest.mark.parametrize("seed", SEEDS)
def test_a_check_refuses_what_a_plan_refuses_in_the_same_words(seed):
    job, machine, shape = job_of(seed)
    if seed % 2:
        machine = replace(machine, memory_bytes=machine.memory_bytes // 8, disk_free_bytes=10 * GIB)
    names = [stage.stage_name for stage in job.stages]
    places = Places(file_name="job.yaml", marks={}, stage_names=names)
    said = []
    for make in (make_plan, check_plan):
        try:
            make(job, machine=machine, shape=shape, places=places, rates=catalogue_rates(machine))
            said.append("")
        except LauncherError as error:
            said.append(error.text())
    assert said[0] == said[1]
