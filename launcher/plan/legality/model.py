"""Rules about the model: attention kernel, adapter and 4-bit widths."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.batch import nearest_multiples
from launcher.plan.legality.rule import Refusal, Rule, Spot
from launcher.plan.shape import block_linears

NF4_WIDTH_STEP = 32


def widths_can_be_packed(spot: Spot) -> Iterator[Refusal]:
    """bitsandbytes repacks 4-bit weights on a CPU at the first evaluation and fails there on other widths."""
    job = spot.job
    if job.model.quantize is None or not spot.case.cpu:
        return
    widths = sorted({size for linear in block_linears(spot.shape) for size in (linear.inputs, linear.outputs)})
    odd = [width for width in widths if width % NF4_WIDTH_STEP]
    if odd:
        near = ", ".join(f"{width} -> {nearest_multiples(width, NF4_WIDTH_STEP)[0]}" for width in odd)
        what = f"nf4 on a CPU needs layer widths that are multiples of {NF4_WIDTH_STEP}, got {', '.join(map(str, odd))}"
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
    if adapter is None or adapter.targets == "all-linear":
        return
    names = list(dict.fromkeys(linear.name for linear in block_linears(spot.shape)))
    for target in adapter.targets:
        if target.rsplit(".", 1)[-1] not in names:
            what = f"{target} is no matrix of a {spot.shape.family} block"
            hint = f"use all-linear, or some of {', '.join(names)}"
            yield Refusal(path=("model", "adapter", "targets"), what=what, hint=hint)


MODEL_RULES: tuple[Rule, ...] = (
    Rule(
        code="E206",
        refuses="nf4 on a CPU with layer widths that are no multiples of 32",
        because="bitsandbytes repacks 4-bit weights there in blocks of 32 and fails on others",
        instead="the nearest widths, or no quantize",
        find=widths_can_be_packed,
    ),
    Rule(
        code="E209",
        refuses="flash_attention_2 on a CPU, on a GPU before Ampere, or in fp32",
        because="the kernel exists for 16 bit on Ampere and newer only",
        instead="sdpa",
        find=kernel_runs_here,
    ),
    Rule(
        code="E214",
        refuses="an adapter on a module that the model's blocks do not have",
        because="it would train nothing",
        instead="all-linear, or the matrices that are there",
        find=adapter_finds_its_targets,
    ),
)
