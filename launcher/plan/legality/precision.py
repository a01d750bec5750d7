"""Rules about precision: what the device cannot do, what DeepSpeed gets wrong, and TF32."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.asked import precision_of
from launcher.plan.legality.rule import Refusal, Rule, Spot


def device_has_the_precision(spot: Spot) -> Iterator[Refusal]:
    case, asked = spot.case, spot.job.precision
    best = "fp32" if case.cpu else "bf16" if case.machine.bf16 else "fp16"
    device = "a CPU" if case.cpu else case.machine.gpu or "this GPU"
    if _cannot(spot):
        what = f"{asked} cannot be trained on {device}"
        yield Refusal(path=("precision",), what=what, hint=f"use {best}, or leave it out")


def _cannot(spot: Spot) -> bool:
    machine = spot.case.machine
    fp16, bf16 = machine.fp16 and not spot.case.cpu, machine.bf16
    return (spot.job.precision == "fp16" and not fp16) or (spot.job.precision == "bf16" and not bf16)


def sixteen_bit_needs_zero_1(spot: Spot) -> Iterator[Refusal]:
    asked = spot.job.precision
    if asked in ("bf16", "fp16") and spot.asked.zero == 0 and not _cannot(spot):
        wrong = "runs Adam one step ahead" if asked == "bf16" else "divides the gradients by the loss scale"
        what = f"{asked} with parallel.zero 0: DeepSpeed {wrong}, and the loss curve does not show it"
        yield Refusal(path=spot.parallel("zero"), what=what, hint="use zero: 1, which computes the same and is right")


def tf32_is_of_fp32(spot: Spot) -> Iterator[Refusal]:
    if not spot.job.tf32:
        return
    case, path = spot.case, ("tf32",)
    if case.cpu or not case.machine.bf16:  # bf16 and TF32 came with the same generation, Ampere
        device = "the ranks are CPU processes" if case.cpu else f"{case.machine.gpu or 'this GPU'} is older than Ampere"
        yield Refusal(path=path, what=f"true has no effect: {device}", hint="remove it")
    elif all(precision_of(case.job, stage, case.machine) != "fp32" for stage in case.job.stages):
        precision = precision_of(case.job, spot.stage, case.machine)
        yield Refusal(
            path=path, what=f"true has no effect: the precision is {precision}", hint="remove it, or use precision: fp32"
        )


PRECISION_RULES: tuple[Rule, ...] = (
    Rule(
        code="E205",
        refuses="fp16 on a CPU, bf16 on a GPU before Ampere",
        because="the device does not compute in it; DeepSpeed refuses fp16 on most CPUs (runtime/engine.py:2004)",
        instead="fp32 on a CPU, fp16 on an old GPU",
        find=device_has_the_precision,
        proof=(
            "tests/stages/test_refusals.py::test_fp16_is_refused_on_a_cpu",
            "needs CUDA: a GPU before Ampere has no bf16",
        ),
    ),
    Rule(
        code="E205",
        refuses="bf16 or fp16 at ZeRO 0",
        because="bf16 runs Adam one step ahead (runtime/fp16/unfused_optimizer.py:425), fp16 divides the gradients by a loss"
        " scale they never had (runtime/engine.py:3417)",
        instead="ZeRO 1",
        find=sixteen_bit_needs_zero_1,
        proof=(
            "tests/stages/traps/test_precision.py::test_bf16_at_zero_0_starts_adam_at_its_second_step",
            "tests/stages/traps/test_precision.py::test_fp16_at_zero_0_divides_the_gradients_by_the_loss_scale",
        ),
    ),
    Rule(
        code="E205",
        refuses="tf32 on a CPU, on a GPU before Ampere, or where no stage computes in fp32",
        because="it changes fp32 products of such GPUs and nothing else",
        instead="no tf32, or precision: fp32",
        find=tf32_is_of_fp32,
        proof=("needs CUDA: torch reads the switch in products on a GPU only",),
    ),
)
