"""What a plan or a refusal tells to write is written, and does what was said: by a seed, over models, GPUs and objectives."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

import pytest
import yaml

from launcher.errors import LauncherError, Problem
from launcher.plan.away import away_machine
from launcher.plan.explain import plan_text
from launcher.plan.known_shapes import KNOWN_CONFIGS
from launcher.plan.make import make_plan
from launcher.plan.plan import Plan, StagePlan
from launcher.plan.shape import ModelShape, shape_from_config
from launcher.spec.job import JobSpec
from launcher.spec.places import Places
from launcher.units import seconds_text, short_seconds_text

MODELS = {
    "meta-llama/Llama-2-7b-hf": shape_from_config(KNOWN_CONFIGS["meta-llama/Llama-2-7b-hf"], file="config.json"),
    "meta-llama/Llama-3.1-70B": shape_from_config(KNOWN_CONFIGS["meta-llama/Llama-3.1-70B"], file="config.json"),
    "Qwen/Qwen2.5-0.5B": shape_from_config(KNOWN_CONFIGS["Qwen/Qwen2.5-0.5B"], file="config.json"),
}
SEEDS = range(24)
LAST_WORD = "use a smaller model or a device with more memory"


def drawn(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    kind = draw.choice(["pretrain", "sft", "dpo"])
    data = {"source": "python-docs", "max_tokens": draw.choice([128, 1024, 4096])}
    parallel = draw.choice([None, None, None, {"tensor": 1}, {"zero": 3}, {"checkpointing": "none"}, {"pipeline": 2}])
    job = {
        "name": "drawn",
        "model": {"source": draw.choice(sorted(MODELS))},
        "cluster": {
            "gpu": draw.choice(["h100-80gb", "a100-40gb", "a10g-24gb", "l4-24gb"]),
            "slots": draw.choice([1, 2, 3, 4, 8]),
            "nodes": draw.choice([1, 1, 3]),
        },
        "batch": {"global": draw.choice([8, 24, 61, 96])},
        "objective": draw.choice(["speed", "cost", "memory"]),
        "stages": [{"kind": kind, "data": data, "steps": draw.choice([7, 1000])}],
    }
    return job | ({"parallel": parallel} if parallel else {})


def planned(raw: dict[str, Any]) -> StagePlan | Problem:
    job = JobSpec.model_validate_json(json.dumps(raw))
    shape: ModelShape = MODELS[str(job.model.source)]
    assert job.cluster.gpu is not None
    machine = away_machine(job.cluster.gpu, slots=job.cluster.slots, nodes=job.cluster.nodes or 1)
    try:
        plan: Plan = make_plan(job, machine=machine, shape=shape, places=Places(file_name="j", marks={}, stage_names=["s"]))
    except LauncherError as error:
        return error.problems[0]
    return plan.stages[0]


def written(raw: dict[str, Any], path: str, value: object) -> None:
    *parents, key = path.split(".")
    holder = raw["stages"][0] if parents == ["data"] else raw
    for parent in parents:
        holder = holder.setdefault(parent, {})
    holder[key] = value


def followed(raw: dict[str, Any], hint: str) -> dict[str, Any]:
    """The job with what a hint says, as a reader would write it."""
    job = copy.deepcopy(raw)
    if hint.startswith("leave parallel and batch.micro out"):
        job.pop("parallel", None)
        return job
    if "model.adapter" in hint:
        job["model"]["adapter"] = {"kind": "lora"}
    for path, value in re.findall(r"\b((?:cluster|batch|data|parallel)\.[a-z_]+):? (\w+)", hint):
        written(job, path, yaml.safe_load(value))
    if re.match(r"use \d+( \(nearest\))?( or \d+)?$", hint):
        written(job, "batch.global", int(hint.split()[1]))
    return job


@pytest.mark.parametrize("seed", SEEDS)
def test_a_refusal_is_mended_by_its_hint(seed):
    raw = drawn(seed)
    problem = planned(raw)
    if isinstance(problem, StagePlan) or problem.code not in ("E204", "E210") or problem.hint == LAST_WORD:
        return
    mended = planned(followed(raw, problem.hint))
    if problem.code == "E204":  # arithmetic alone: whether it fits is said afterwards
        assert isinstance(mended, StagePlan) or mended.code == "E210", problem.hint
    else:
        assert isinstance(mended, StagePlan), (problem.hint, mended)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_job_of_a_plan_that_is_too_close_gives_that_plan(seed):
    raw = drawn(seed)
    plan = planned(raw)
    told = {reason.code: reason.text for reason in plan.reasons} if isinstance(plan, StagePlan) else {}
    if "next.too_close" not in told:
        return
    job = copy.deepcopy(raw)
    for words in re.findall(r"`([^`]+)`", told["next.too_close"]):
        path, _, value = words.partition(": ")
        written(job, path, yaml.safe_load(value))
    other = planned(job)
    assert isinstance(other, StagePlan)
    assert told["next.best"].startswith(f"next best is {name_of(other)}: {short_seconds_text(other.time.step_s)} a step")


def name_of(plan: StagePlan) -> str:
    """As the planner names it."""
    degrees = {"tensor": plan.tp, "pipeline": plan.pp, "sequence": plan.sp}
    words = [" x ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1), f"ZeRO-{plan.zero}"]
    words += {"none": [], "full": ["full checkpointing"], "offload": ["checkpoints on the host"]}[plan.checkpointing]
    places = {"optimizer": plan.offload_optimizer, "parameters": plan.offload_parameters}
    words += [f"{name} on the CPU" for name, place in places.items() if place == "cpu"]
    return ", ".join(word for word in [*words, f"micro-batch {plan.micro_batch}"] if word)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_next_best_plan_differs_in_its_name_and_in_what_is_told_of_it(seed):
    plan = planned(drawn(seed))
    if not isinstance(plan, StagePlan) or plan.memory.p_fit < 0.95:
        return
    told = {reason.code: reason.text for reason in plan.reasons}
    assert ("next.best" in told) != ("next.none" in told)
    assert not told.get("next.best", "").startswith(f"next best is {name_of(plan)}:")


@pytest.mark.parametrize("seed", SEEDS)
def test_reasons_hold_under_the_objective(seed):
    raw = drawn(seed)
    plan = planned(raw)
    if not isinstance(plan, StagePlan):
        return
    text = " ".join(reason.text for reason in plan.reasons)
    words = {"speed": (), "cost": ("fastest plan", "nothing faster"), "memory": ("fastest plan", "nothing faster", "cheap")}
    assert not any(word in text for word in words[raw["objective"]])
    assert (f"objective {raw['objective']}" in text) == (raw["objective"] != "speed")
    if plan.offload_optimizer == "cpu" and raw["objective"] == "speed":
        here = [one for one in plan.pareto if "on the CPU" not in one.plan]
        assert all(one.step_s >= plan.time.step_s for one in here)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_hours_of_a_stage_follow_from_what_is_told(seed):
    plan = planned(drawn(seed))
    if not isinstance(plan, StagePlan):
        return
    time = plan.time
    assert time.num_steps * time.step_s + sum(time.beside_s.values()) == pytest.approx(time.total_s)
    assert bool(time.beside_s) == (plan.kind == "dpo")


def test_every_example_shows_how_its_hours_come_about(example_plans):
    for plan in example_plans:
        text = plan_text(plan)
        for stage in plan.stages:
            time = stage.time
            if time.total_s is None:
                assert time.num_steps is None
                continue
            assert time.num_steps * time.step_s + sum(time.beside_s.values()) == pytest.approx(time.total_s)
            beside = "".join(f" + {short_seconds_text(seconds)} of {name}" for name, seconds in time.beside_s.items())
            steps = f"  stage   {time.num_steps} optimizer steps x {short_seconds_text(time.step_s)}{beside}"
            assert f"{steps} = {seconds_text(time.total_s)}\n" in text
