"""The search against every candidate worked out one by one: what is taken, what is second, what is told of the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.plan.away import away_machine
from launcher.plan.candidate import ROOM, Candidate
from launcher.plan.cost.fastest import NEARLY
from launcher.plan.cost.of_stage import Clock
from launcher.plan.cost.rates import catalogue_rates
from launcher.plan.ladder import (
    SAFE,
    UNPINNED,
    Ground,
    Pinned,
    Rung,
    fit_of,
    fits,
    last_rungs_for,
    micros_of,
    rungs_for,
    unsuited,
)
from launcher.plan.load import Load
from launcher.plan.plan import Machine, StagePlan
from launcher.plan.search import TWIN_BYTES, TWIN_S, Found, Short, search
from launcher.plan.shape import ModelShape, shape_from_config
from launcher.spec.model import Lora

ROOT = Path(__file__).parents[3]
SOURCE = {"model": {"source": "owner/llama"}, "batch.global": 64, "stages.0.data.max_tokens": 512}
LLAMA_3_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
DEGREES = [(1, 1, 1), (2, 1, 1), (8, 1, 1), (1, 4, 1), (2, 2, 1), (1, 1, 2), (1, 1, 8)]


@pytest.fixture
def load(llama: ModelShape) -> Load:
    return Load(shape=llama, kind="sft", adapter=None, quantized=False, eager=False, row_tokens=1024, answer_tokens=0)


@pytest.fixture
def searched() -> Callable[..., tuple[Found, list[Candidate]]]:
    """What the search finds, and every safe candidate worked out by itself."""

    def found(load: Load, *, gpu: str = "h100-80gb", rows: int = 64, pinned: Pinned = UNPINNED, **asked):
        machine, degrees = away_machine(gpu, slots=8), asked.pop("degrees", DEGREES)
        grounds = [ground_of(machine, one, rows=rows) for one in degrees]
        result = search(load, grounds, pinned, clock_of(load, machine), **asked)
        assert isinstance(result, Found)
        return result, list(safe_ones(load, grounds, pinned, clock_of(load, machine)))

    return found


def ground_of(machine: Machine, degrees: tuple[int, int, int], *, rows: int = 64) -> Ground:
    tp, pp, sp = degrees
    return Ground(machine=machine, dp=machine.slots // (tp * pp * sp), tp=tp, pp=pp, sp=sp, precision="bf16", global_batch=rows)


def clock_of(load: Load, machine: Machine) -> Clock:
    speeds = catalogue_rates(machine).speeds(machine)
    assert speeds is not None
    return Clock(load, speeds)


def safe_ones(load: Load, grounds: Sequence[Ground], pinned: Pinned, clock: Clock) -> Iterator[Candidate]:
    for ground in grounds:
        for order, rung in enumerate(rungs_for(pinned)):
            if unsuited(rung, ground, pinned) is None:
                for micro in micros_of(load, ground, pinned):
                    fit = fit_of(load, ground, rung, micro, pinned)
                    if fits(fit, SAFE):
                        yield Candidate(fit=fit, time=clock.time(fit.layout), order=order)


def only(plan) -> StagePlan:
    (stage,) = plan.stages
    return stage


def peak(one: Candidate) -> int:
    return one.fit.memory.peak_bytes


def differing(safe: Sequence[Candidate], chosen: Candidate) -> list[Candidate]:
    """Of other families, and not as fast and as large as the chosen one."""

    def twins(one: Candidate) -> bool:
        return abs(one.seconds / chosen.seconds - 1) < TWIN_S and abs(peak(one) / peak(chosen) - 1) < TWIN_BYTES

    others = [one for one in safe if (one.fit.rung, one.fit.ground) != (chosen.fit.rung, chosen.fit.ground)]
    return [one for one in others if not twins(one)]


JOBS = [("h100-80gb", 512), ("h100-80gb", 2048), ("a100-40gb", 1024), ("a10g-24gb", 512), ("rtx4090-24gb", 2048)]
each_job = pytest.mark.parametrize(("gpu", "tokens"), JOBS)


# --- what is taken -------------------------------------------------------------------------------------------------------


@each_job
def test_the_chosen_plan_is_at_most_2_percent_slower_than_the_fastest_that_fits(load, searched, gpu, tokens):
    found, safe = searched(replace(load, row_tokens=tokens), gpu=gpu)
    assert found.chosen.seconds <= NEARLY * min(one.seconds for one in safe)
    assert fits(found.chosen.fit, SAFE)


@each_job
def test_no_plainer_plan_is_as_fast(load, searched, gpu, tokens):
    found, safe = searched(replace(load, row_tokens=tokens), gpu=gpu)
    as_fast = [one for one in safe if one.seconds <= NEARLY * min(other.seconds for other in safe)]
    assert found.chosen.plainness == max(one.plainness for one in as_fast)


@each_job
def test_objective_memory_takes_the_lowest_peak_that_is_not_a_quarter_slower(load, searched, gpu, tokens):
    found, safe = searched(replace(load, row_tokens=tokens), gpu=gpu, objective="memory")
    quickest = min(one.seconds for one in safe)
    assert found.chosen.seconds <= ROOM * quickest
    assert peak(found.chosen) == min(peak(one) for one in safe if one.seconds <= ROOM * quickest)


def test_objective_memory_never_needs_more_than_objective_speed(load, searched):
    speed, memory = (searched(load, objective=objective)[0].chosen for objective in ("speed", "memory"))
    assert peak(memory) < peak(speed)


def test_objective_cost_takes_the_fewest_gpu_seconds_on_all_ranks_or_on_half_of_them(make_job, plan, gpus, llama):
    fast, cheap = (
        only(plan(make_job(SOURCE | {"objective": objective}), machine=gpus, shape=llama)) for objective in ("speed", "cost")
    )
    assert cheap.world in (1, 2, 4, 8)
    assert cheap.time.step_s * cheap.world <= NEARLY * fast.time.step_s * fast.world
    assert (cheap.dp * cheap.tp * cheap.pp * cheap.sp, fast.world) == (cheap.world, 8)


def test_objective_cost_uses_fewer_ranks_where_more_of_them_wait_for_each_other(make_job, plan):
    """Eight GPUs that talk over PCIe send the gradients of 7 B parameters for a few rows each."""
    job = make_job(SOURCE | {"batch.global": 8, "objective": "cost", "model.adapter": {"kind": "lora"}})
    slow_links = away_machine("l40s-48gb", slots=8)
    small = shape_from_config(LLAMA_3_1B, file="config.json")
    cheap = only(plan(job, machine=slow_links, shape=small))
    assert cheap.world < 8


def test_a_single_pass_is_found_where_two_smaller_ones_would_not_fit(load):
    """Sums of bf16 gradients over several passes are fp32: 2 bytes a parameter more than one pass over all rows needs."""
    machine, pinned = away_machine("h100-80gb", slots=8), replace(UNPINNED, zero=1, checkpointing="none")
    short = replace(load, row_tokens=128)
    ground = ground_of(machine, (1, 1, 1), rows=16)
    one, two = (fit_of(short, ground, Rung(zero=1, checkpointing="none"), micro, pinned).memory.peak_bytes for micro in (2, 1))
    assert one < two
    tight = replace(ground, machine=replace(machine, memory_bytes=safe_limit(one)))
    found = search(short, [tight], pinned, clock_of(short, machine))
    assert found is not None
    assert (found.chosen.layout.micro_batch, found.chosen.layout.grad_accum) == (2, 1)


def safe_limit(peak_bytes: int) -> int:
    """The least memory into which a peak fits with 95 %."""
    return int(peak_bytes * 1.2183)


@pytest.mark.parametrize("gpu", ["a10g-24gb", "a100-40gb"])
@pytest.mark.parametrize("tokens", [512, 1024, 2048])
@pytest.mark.parametrize("rows", [6, 12, 24, 48])
def test_logits_in_tiles_of_equal_size_make_no_micro_batch_safe_that_is_not_and_hide_none_that_is(load, gpu, tokens, rows):
    """Three rows of 2048 tokens are cut into tiles of 3072, two into one of 4096: the larger micro-batch needs less."""
    wide = replace(load, shape=shape_from_config(LLAMA_3_1B, file="config.json"), row_tokens=tokens)
    machine = away_machine(gpu, slots=8)
    ground = ground_of(machine, (1, 1, 1), rows=8 * rows)
    clock = clock_of(wide, machine)
    found = search(wide, [ground], UNPINNED, clock)
    assert found is not None
    safe = list(safe_ones(wide, [ground], UNPINNED, clock))
    assert fits(found.chosen.fit, SAFE)
    assert found.chosen.seconds <= NEARLY * min(one.seconds for one in safe)


# --- what is told of the rest ---------------------------------------------------------------------------------------------


@each_job
def test_the_runner_up_is_of_another_family(load, searched, gpu, tokens):
    """Other degrees, ZeRO stage, checkpointing or offload: another micro-batch is no other plan. It is the best of its own."""
    found, safe = searched(replace(load, row_tokens=tokens), gpu=gpu)
    chosen, second = found.chosen.fit, found.runner_up.fit
    assert (chosen.rung, replace(chosen.ground, global_batch=0)) != (second.rung, replace(second.ground, global_batch=0))
    others = differing(safe, found.chosen)
    assert found.runner_up.seconds <= NEARLY**2 * min(one.seconds for one in others)
    assert found.runner_up.seconds <= NEARLY * min(one.seconds for one in others if one.family == found.runner_up.family)


@each_job
def test_the_runner_up_under_objective_memory_is_what_it_would_take_without_the_chosen_family(load, searched, gpu, tokens):
    found, safe = searched(replace(load, row_tokens=tokens), gpu=gpu, objective="memory")
    others = differing(safe, found.chosen)
    quickest = min(one.seconds for one in others)
    assert peak(found.runner_up) == min(peak(one) for one in others if one.seconds <= ROOM * quickest)


@pytest.mark.parametrize(
    ("objective", "words"), [("speed", "nothing faster fits"), ("memory", "nothing smaller is quick enough")]
)
def test_the_reasons_name_what_was_chosen_by(make_job, plan, llama, objective, words):
    job, tight = make_job(SOURCE | {"objective": objective}), away_machine("a100-40gb", slots=8)
    stage = only(plan(job, machine=tight, shape=llama))
    told = {reason.code: reason.text for reason in stage.reasons}
    assert told["checkpointing.saves_memory"].endswith(words)
    assert "next.best" in told
    assert [code for code in told if code.startswith("objective.")] == (
        [] if objective == "speed" else [f"objective.{objective}"]
    )
    if objective == "memory":
        assert not any("fastest plan" in text or "faster" in text for text in told.values())
    assert not (objective == "memory" and "next.too_close" in told)


@each_job
def test_the_pareto_front_is_exactly_what_no_other_candidate_beats_in_both(load, searched, gpu, tokens):
    found, safe = searched(replace(load, row_tokens=tokens), gpu=gpu)
    front = [(option.step_s, option.peak_bytes) for option in found.front]
    assert front == sorted(front)
    assert [memory for _, memory in front] == sorted((memory for _, memory in front), reverse=True)
    for one in safe:
        beaten = any(step <= one.seconds and memory <= peak(one) for step, memory in front)
        assert beaten
    assert not any(one.seconds < step and peak(one) < memory for one in safe for step, memory in front)


@each_job
def test_every_family_is_told_once_with_a_code_and_a_reason(load, searched, gpu, tokens):
    found, safe = searched(replace(load, row_tokens=tokens), gpu=gpu)
    assert all(item.code and item.text and item.plan for item in found.rejected)
    families = {(one.fit.ground, one.fit.rung) for one in safe}
    passed_over = [item for item in found.rejected if item.code in ("slower", "tie")]
    assert len(passed_over) == len(families) - 1
    assert len({item.plan for item in found.rejected}) == len(found.rejected)


def test_slower_ones_are_told_fastest_first_and_by_how_much(load, searched):
    found, _ = searched(load)
    slower = [item.text for item in found.rejected if item.code == "slower"]
    assert all(text.endswith("slower") for text in slower)
    percents = [int(text.split(", ")[1].split("%")[0]) for text in slower]
    assert percents == sorted(percents)


@each_job
def test_under_objective_memory_the_others_are_larger_or_too_slow(load, searched, gpu, tokens):
    found, safe = searched(replace(load, row_tokens=tokens), gpu=gpu, objective="memory")
    quickest = min(one.seconds for one in safe)
    smallest = {one.text(): one for one in safe}
    for item in found.rejected:
        if item.code == "larger":
            assert peak(smallest[item.plan]) > peak(found.chosen)
        elif item.code == "slower":
            assert smallest[item.plan].seconds > ROOM * quickest
        assert not (item.code == "slower" and "faster" in item.text)


@each_job
def test_under_objective_cost_the_others_take_more_gpu_time(load, searched, gpu, tokens):
    found, safe = searched(replace(load, row_tokens=tokens), gpu=gpu, objective="cost")
    of_text = {one.text(): one for one in safe}
    dearer = [item for item in found.rejected if item.code == "dearer"]
    assert dearer
    assert all(of_text[item.plan].gpu_seconds > NEARLY * found.chosen.gpu_seconds for item in dearer)
    assert all(item.text.endswith("more GPU time") for item in dearer)


def test_every_candidate_is_counted(load, searched):
    found, _ = searched(load, degrees=[(1, 1, 1)])
    machine = away_machine("h100-80gb", slots=8)
    ground = ground_of(machine, (1, 1, 1))
    tried = [rung for rung in rungs_for(UNPINNED) if unsuited(rung, ground, UNPINNED) is None]
    assert found.judged == len(tried) * len(micros_of(load, ground, UNPINNED))


def test_without_a_known_speed_the_ladder_decides_and_no_front_is_told(load):
    machine = away_machine("h100-80gb", slots=8)
    found = search(load, [ground_of(machine, one) for one in DEGREES], UNPINNED, None)
    assert found is not None
    assert (found.chosen.fit.ground.world, found.chosen.time, found.front) == (8, None, ())
    assert found.chosen.fit.rung.offload_optimizer == "none"


def test_nothing_fits_into_nothing(load):
    machine = replace(away_machine("h100-80gb", slots=8), memory_bytes=2**30)
    short = search(load, [ground_of(machine, one) for one in DEGREES], UNPINNED, clock_of(load, machine))
    assert isinstance(short, Short)
    assert short.on_host is None
    every = [*rungs_for(UNPINNED), *last_rungs_for(UNPINNED, load, machine)]
    peaks = [
        fit_of(load, ground, rung, micro, UNPINNED).memory.peak_bytes
        for ground in (ground_of(machine, one) for one in DEGREES)
        for rung in every
        if unsuited(rung, ground, UNPINNED) is None
        for micro in micros_of(load, ground, UNPINNED)
    ]
    assert short.least.memory.peak_bytes == min(peaks)


def test_where_only_the_host_is_too_small_the_least_that_it_would_need_is_told(load):
    machine = replace(away_machine("a10g-24gb", slots=1), host_memory_bytes=64 * 2**30)
    short = search(load, [ground_of(machine, (1, 1, 1), rows=8)], UNPINNED, clock_of(load, machine))
    assert isinstance(short, Short)
    assert short.on_host.memory.peak_bytes < machine.memory_bytes
    assert short.on_host.memory.host_peak_bytes > machine.host_memory_bytes


def test_checkpoints_rest_on_the_host_only_where_nothing_else_is_as_safe(load):
    machine = away_machine("h100-80gb", slots=8)
    wide = replace(load, shape=replace(load.shape, positions=2**20), row_tokens=2**20)
    grounds = [ground_of(machine, one, rows=8) for one in DEGREES]
    found = search(wide, grounds, UNPINNED, clock_of(wide, machine))
    assert isinstance(found, Found)
    assert found.chosen.layout.checkpointing == "offload"
    assert search(load, grounds, UNPINNED, clock_of(load, machine)).chosen.layout.checkpointing != "offload"


# --- what the user decided -----------------------------------------------------------------------------------------------


PINS = [
    {"parallel.zero": 1},
    {"parallel.zero": 3},
    {"parallel.checkpointing": "full"},
    {"parallel.checkpointing": "none"},
    {"parallel": {"zero": 2, "offload": {"optimizer": "cpu"}}},
    {"parallel": {"offload": {"optimizer": "none"}}},
    {"parallel.tensor": 2},
    {"parallel": {"tensor": 2, "pipeline": 2}},
    {"parallel.sequence": 2},
    {"batch": {"global": 64, "micro": 1}},
    {"batch": {"global": 64, "micro": 2}, "parallel.zero": 3},
    {"batch": {"global": 24}, "precision": "fp32", "parallel.pipeline": 4},
]


@pytest.mark.parametrize("objective", ["speed", "memory", "cost"])
@pytest.mark.parametrize("pins", PINS, ids=str)
def test_nothing_that_is_pinned_is_changed(make_job, plan, gpus, llama, pins, objective):
    stage = only(plan(make_job(SOURCE | pins | {"objective": objective}), machine=gpus, shape=llama))
    asked = pins.get("parallel", {}) | {name.removeprefix("parallel."): value for name, value in pins.items() if "." in name}
    degrees = {"tensor": stage.tp, "pipeline": stage.pp, "sequence": stage.sp}
    planned = {"zero": stage.zero, "checkpointing": stage.checkpointing, **degrees}
    assert {name: planned[name] for name in asked if name in planned} == {
        name: value for name, value in asked.items() if name in planned
    }
    if asked:  # a `parallel` block leaves degrees that it does not name at 1
        assert all(degree == asked.get(name, 1) for name, degree in degrees.items())
    for place in asked.get("offload", {}).values():
        assert stage.offload_optimizer == place
    assert stage.micro_batch == pins.get("batch", {}).get("micro", stage.micro_batch)
    assert stage.precision == pins.get("precision", "bf16")
    assert stage.micro_batch * stage.grad_accum * stage.dp == stage.global_batch


def test_a_tensor_degree_of_1_keeps_the_plan_data_parallel(make_job, plan, llama):
    """Where the search is free it shares the blocks."""
    small = away_machine("a10g-24gb", slots=8)
    free, kept = (only(plan(make_job(SOURCE | asked), machine=small, shape=llama)) for asked in ({}, {"parallel.tensor": 1}))
    assert (kept.dp, kept.tp, kept.pp, kept.sp) == (8, 1, 1, 1)
    assert free.tp * free.pp * free.sp > 1
    assert free.time.step_s <= kept.time.step_s


def test_ppo_and_4_bit_bases_get_no_degrees(make_job, plan, gpus, llama, ppo_chain):
    changes = {"model": {"source": "owner/llama", "adapter": {"kind": "lora"}, "quantize": "nf4"}}
    sft, reward, ppo = plan(make_job(changes, stages=ppo_chain), machine=gpus, shape=llama).stages
    assert {(stage.tp, stage.pp, stage.sp) for stage in (sft, reward, ppo)} == {(1, 1, 1)}
    assert "E220" in {item.code for item in ppo.rejected}
    whole = plan(make_job({"model": {"source": "owner/llama"}}, stages=ppo_chain[:2]), machine=gpus, shape=llama).stages
    assert "E220" not in {item.code for stage in whole for item in stage.rejected}


@pytest.mark.parametrize("world", [1, 2, 6, 8, 12])
def test_degrees_multiply_to_the_ranks(make_job, plan, gpus, llama, world):
    machine = replace(gpus, slots=world, gpu="h200-141gb", memory_bytes=140 * 2**30)
    asked = SOURCE | {"batch.global": 2 * world, "model.adapter": {"kind": "lora"}}
    stage = only(plan(make_job(asked), machine=machine, shape=llama))
    assert stage.dp * stage.tp * stage.pp * stage.sp == stage.world == world


# --- the same input gives the same text ----------------------------------------------------------------------------------


def test_a_plan_does_not_depend_on_the_order_in_which_sets_are_walked():
    """Strings hash otherwise in each process."""
    argv = [Path(sys.executable).with_name("launcher"), "plan", str(ROOT / "examples" / "llama_3d.yaml"), "--json"]
    texts = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
        texts.add(done.stdout)
    assert [json.loads(text)["job"] for text in texts] == ["llama-3d"]


def test_an_adapter_and_all_weights_are_searched_alike(load, searched):
    found, safe = searched(replace(load, adapter=Lora(rank=16)))
    assert found.chosen.seconds <= NEARLY * min(one.seconds for one in safe)


def test_the_same_plan_as_json_is_the_same_text(make_job, plan, gpus, llama):
    texts = {json.dumps(plan(make_job(SOURCE), machine=gpus, shape=llama).as_dict()) for _ in range(2)}
    assert len(texts) == 1
