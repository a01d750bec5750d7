"""Rules about the model: its family, attention kernel, adapter and 4-bit widths."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.batch import nearest_multiples
from launcher.plan.legality.rule import Refusal, Rule, Spot
from launcher.plan.shape import FAMILIES, PLANNED_ONLY, ModelShape, block_linears, nearest_trained

NF4_BLOCK = 64  # weights that share a scale, counted through the whole matrix
AVX512_STEP = 16  # weights that the kernel reads at once


def untrained(shape: ModelShape) -> Iterator[Refusal]:
    """What is said where a model is to be trained whose family can only be planned for."""
    if shape.trainable:
        return
    because = "the ranks do not know its blocks" if shape.blueprint is None else shape.blueprint.untrained
    what = f"{shape.family} can be planned for, not trained yet: {because}"
    near = f"a {nearest_trained(shape.family)} model"
    other = near if shape.blueprint is None else f"a model of another family ({', '.join(FAMILIES)})"
    hint = f"train {other}; `launcher plan` with cluster.gpu and cluster.slots plans this one"
    yield Refusal(path=("model", "source"), what=what, hint=hint)


def family_is_trained_here(spot: Spot) -> Iterator[Refusal]:
    """A job that names its GPU may be planned for elsewhere; where it is to run all the same, supervise/planning.py refuses."""
    if spot.job.cluster.gpu is None:
        yield from untrained(spot.shape)


def rewards_have_a_classifier(spot: Spot) -> Iterator[Refusal]:
    blueprint = spot.shape.blueprint
    if blueprint is not None and not blueprint.scores and spot.stage.kind in ("reward", "ppo"):
        what = (
            f"{spot.stage.kind} with {spot.shape.family}: transformers {blueprint.transformers} has no classifier of the family"
        )
        yield Refusal(path=spot.of_stage(), what=what, hint="leave the stage out (dpo needs no rewards), or use another family")


def experts_get_no_adapter(spot: Spot) -> Iterator[Refusal]:
    if spot.shape.experts and spot.job.model.adapter is not None:
        what = f"lora on {spot.shape.family}: what peft would give its experts is not counted"
        also = " and quantize" if spot.job.model.quantize else ""
        hint = f"remove it{also}: all weights of a model with experts can be planned for"
        yield Refusal(path=("model", "adapter"), what=what, hint=hint)


def rows_find_their_scales(spot: Spot) -> Iterator[Refusal]:
    """bitsandbytes 0.50 gives wrong weights for rows of 16, 48 or 96 on a CPU with AVX-512, silently.

    csrc/cpu_ops.cpp, dequantizeBlockwise4bitCpu: row r begins at scale r * (width / 64), rounded down, though blocks run on
    over the ends of rows. Rows of no multiple of 16, and all rows on other CPUs, go through its scalar loop, which is right;
    GPUs run other code. Refused on every CPU: a plan says the same everywhere. test_adapters.py tells when it can go.
    """
    job = spot.job
    if job.model.quantize is None or not spot.case.cpu:
        return
    widths = sorted({linear.inputs for linear in block_linears(spot.shape)})
    wrong = [width for width in widths if width % AVX512_STEP == 0 and width % NF4_BLOCK]
    if wrong:
        near = ", ".join(f"{width} -> {nearest_multiples(width, NF4_BLOCK)[0]}" for width in wrong)
        rule = f"a multiple of {AVX512_STEP} and not of {NF4_BLOCK}"
        what = f"nf4 on a CPU is wrong for layer inputs that are {rule}, got {', '.join(map(str, wrong))}"
        hint = f"change model.new ({near}), or leave quantize out" if job.model.new else "leave quantize out, or use a GPU"
        yield Refusal(path=("model", "quantize"), what=what, hint=hint)


def kernel_runs_here(spot: Spot) -> Iterator[Refusal]:
    machine = spot.case.machine
    if spot.job.model.attention != "flash_attention_2":
        return
    reason = None
    if spot.case.cpu:
        reason = "needs a CUDA device, the ranks are CPU processes"
    elif not machine.bf16:
        reason = f"needs a GPU of Ampere or newer, {machine.gpu or 'this one'} is older"
    elif spot.job.precision == "fp32":
        reason = "computes in 16 bit only, precision is fp32"
    if reason:
        yield Refusal(path=("model", "attention"), what=f"flash_attention_2 {reason}", hint="use sdpa, or leave it out")


def adapter_finds_its_targets(spot: Spot) -> Iterator[Refusal]:
    adapter = spot.job.model.adapter
    if adapter is None or adapter.targets == "all-linear" or spot.shape.experts:
        return
    names = list(dict.fromkeys(linear.name for linear in block_linears(spot.shape)))
    for target in adapter.targets:
        if target.rsplit(".", 1)[-1] not in names:
            what = f"{target} is no matrix of a {spot.shape.family} block"
            hint = f"use all-linear, or some of {', '.join(names)}"
            yield Refusal(path=("model", "adapter", "targets"), what=what, hint=hint)


MODEL_RULES: tuple[Rule, ...] = (
    Rule(
        code="E222",
        refuses=f"{', '.join(PLANNED_ONLY)}, and families of no table that change their logits behind the head (granite,"
        " cohere), but for `plan` with cluster.gpu",
        because="their parameters are counted, their blocks not yet trained; the ranks apply the head to what the blocks give"
        " (train/scoring.py) and would train other logits",
        instead="the nearest family that is trained",
        find=family_is_trained_here,
        proof=(
            "ours: train/families.py",
            "tests/stages/test_blueprints.py::test_logits_that_are_changed_behind_the_head_are_seen",
        ),
    ),
    Rule(
        code="E222",
        refuses="reward and ppo with a family of no table for which transformers has no classifier",
        because="rewards and values are one score a token, from the classifier's head",
        instead="dpo, or another family",
        find=rewards_have_a_classifier,
        proof=("tests/stages/test_blueprints.py::test_a_family_without_a_classifier_is_known_as_such",),
    ),
    Rule(
        code="E222",
        refuses="an adapter on a model with experts",
        because="peft 0.21 puts matrices on each expert of mixtral and qwen3_moe, and on none of qwen2_moe",
        instead="all weights",
        find=experts_get_no_adapter,
        proof=(
            "tests/stages/test_parameter_counts.py::test_peft_adapts_the_experts_of_some_families_only_so_none_are_planned",
        ),
    ),
    Rule(
        code="E206",
        refuses="nf4 on a CPU with layer inputs that are a multiple of 16 and not of 64",
        because="bitsandbytes' AVX-512 kernel takes the scales of other rows there, without an error",
        instead="the nearest widths, or no quantize",
        find=rows_find_their_scales,
        proof=("tests/stages/test_adapters.py::test_the_widths_that_a_cpu_reads_wrongly_in_4_bit_are_those_of_e206",),
    ),
    Rule(
        code="E209",
        refuses="flash_attention_2 on a CPU, on a GPU before Ampere, or in fp32",
        because="the kernel exists for 16 bit on Ampere and newer only",
        instead="sdpa",
        find=kernel_runs_here,
        proof=("needs CUDA: the package has kernels for Ampere and newer only",),
    ),
    Rule(
        code="E214",
        refuses="an adapter on a module that the model's blocks do not have",
        because="it would train nothing",
        instead="all-linear, or the matrices that are there",
        find=adapter_finds_its_targets,
        proof=(
            "tests/stages/test_refusals.py::test_a_target_that_no_block_has_is_refused_alone_and_dropped_without_a_word_beside_others",
        ),
    ),
)
