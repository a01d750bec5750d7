"""Rules about tensor, pipeline and sequence degrees: with the ranks, the model, the stage and each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from launcher.plan.asked import is_quantized, max_tokens_of
from launcher.plan.legality.nearest import (
    DEGREES,
    degrees_fit,
    degrees_text,
    near_degrees,
    near_layout,
    sequence_fits,
    tensor_misfits,
)
from launcher.plan.legality.rule import Refusal, Rule, Spot
from launcher.spec.stages import Ppo, Sft
from launcher.spec.wording import listed


def degrees_need_a_known_family(spot: Spot) -> Iterator[Refusal]:
    asked, blueprint = spot.asked, spot.shape.blueprint
    if blueprint is not None and asked.replica > 1:
        what = f"{degrees_text(asked)} with {spot.shape.family}: the ranks can cut only families whose parts they know"
        first = next(name for name in DEGREES if getattr(asked, name) > 1)
        yield Refusal(
            path=spot.parallel(first), what=what, hint="leave the degrees at 1: ZeRO 3 splits its weights all the same"
        )


def degrees_divide_the_ranks(spot: Spot) -> Iterator[Refusal]:
    if spot.dp is not None:
        return
    asked, near = spot.asked, near_layout(spot)
    degrees = [f"{name} {getattr(asked, name)}" for name in DEGREES if getattr(asked, name) > 1]
    total = f" = {asked.replica}" if len(degrees) > 1 else ""
    what = f"{' x '.join(degrees)}{total} does not divide the {spot.case.world} ranks"
    hint = f"use {degrees_text(near)}" if near else "leave the degrees at 1"
    largest = max(DEGREES, key=lambda name: getattr(asked, name))
    yield Refusal(path=spot.parallel(largest), what=what, hint=f"{hint}, or another number of ranks (cluster.slots)")


def tensor_divides_the_model(spot: Spot) -> Iterator[Refusal]:
    tensor = spot.asked.tensor
    misfits = tensor_misfits(spot.shape, tensor)
    if misfits:
        near = near_degrees(spot, "tensor", lambda degree: not tensor_misfits(spot.shape, degree))
        what = f"{tensor} does not divide the {' and the '.join(misfits)}"
        yield Refusal(path=spot.parallel("tensor"), what=what, hint=f"use {listed(near)}")


def blocks_fill_the_pipeline(spot: Spot) -> Iterator[Refusal]:
    layers, pipeline = spot.shape.layers, spot.asked.pipeline
    if pipeline > layers:
        near = near_degrees(spot, "pipeline", lambda degree: degree <= layers)
        what = f"{pipeline} pipeline stages, but the model has {layers} blocks"
        yield Refusal(path=spot.parallel("pipeline"), what=what, hint=f"use {listed(near)}")


_PIPELINE_ZERO = {
    0: "clips by the norm of the first pipeline stage alone",
    2: "is refused under a pipeline",
    3: "is refused under a pipeline",
}


def pipeline_runs_at_zero_1(spot: Spot) -> Iterator[Refusal]:
    zero = spot.asked.zero
    if spot.asked.pipeline > 1 and zero in _PIPELINE_ZERO:
        what = f"{zero} with pipeline {spot.asked.pipeline}: DeepSpeed's ZeRO {zero} {_PIPELINE_ZERO[zero]}"
        yield Refusal(path=spot.parallel("zero"), what=what, hint="use zero: 1, or pipeline: 1")


def sequence_divides_the_heads(spot: Spot) -> Iterator[Refusal]:
    shape, sequence = spot.shape, spot.asked.sequence
    if sequence_fits(shape, sequence):
        return
    near = near_degrees(spot, "sequence", lambda degree: sequence_fits(shape, degree))
    if shape.heads % sequence:
        what = f"{sequence} does not divide the {shape.heads} attention heads"
    else:
        what = f"{sequence} and the {shape.kv_heads} key/value heads: neither divides the other"
    yield Refusal(path=spot.parallel("sequence"), what=what, hint=f"use {listed(near)}")


def sequence_stands_alone(spot: Spot) -> Iterator[Refusal]:
    asked = spot.asked
    if asked.sequence > 1 and asked.tensor * asked.pipeline > 1:
        others = [name for name in ("tensor", "pipeline") if getattr(asked, name) > 1]
        what = f"{asked.sequence} with {' and '.join(f'{name} {getattr(asked, name)}' for name in others)}: not together"
        hint = f"use sequence: 1, or sequence: {asked.sequence} with {' and '.join(f'{name}: 1' for name in others)}"
        yield Refusal(path=spot.parallel("sequence"), what=what, hint=hint)


def sequence_sees_no_masks(spot: Spot) -> Iterator[Refusal]:
    stage, sequence = spot.stage, spot.asked.sequence
    if sequence > 1 and isinstance(stage, Sft) and stage.packing:
        what = f"true with sequence {sequence}: packed rows would see each other"
        yield Refusal(path=spot.of_stage("packing"), what=what, hint="use packing: false, or sequence: 1")


def sequence_sees_no_window(spot: Spot) -> Iterator[Refusal]:
    window, tokens, sequence = spot.shape.window, max_tokens_of(spot.stage, spot.shape), spot.asked.sequence
    if sequence > 1 and window and tokens > window:
        what = f"{sequence} with a sliding window of {window} in rows of {tokens} tokens: Ulysses would show all of a row"
        tensor = _tensor_instead(spot)
        hint = f"use data.max_tokens: {window}" + (f", or tensor: {tensor} with sequence: 1" if tensor else "")
        yield Refusal(path=spot.parallel("sequence"), what=what, hint=hint)


def _tensor_instead(spot: Spot) -> int | None:
    """The tensor degree nearest to the sequence degree that is asked; None: there is none above 1."""
    as_tensor = replace(spot.asked, tensor=spot.asked.sequence, sequence=1)
    if degrees_fit(spot, as_tensor):
        return as_tensor.tensor
    fitting = [degree for degree in near_degrees(replace(spot, asked=as_tensor), "tensor") if degree > 1]
    return fitting[0] if fitting else None


def sequence_needs_a_kernel(spot: Spot) -> Iterator[Refusal]:
    if spot.asked.sequence > 1 and spot.job.model.attention == "eager":
        what = f"eager with sequence {spot.asked.sequence}: DeepSpeed refuses it"
        yield Refusal(path=("model", "attention"), what=what, hint="use sdpa, or leave it out")


def quantized_weights_stay_whole(spot: Spot) -> Iterator[Refusal]:
    if spot.asked.replica > 1 and is_quantized(spot.job, spot.stage.kind):
        what = f"nf4 with {degrees_text(spot.asked)} in stage {spot.stage.stage_name}: packed weights cannot be cut"
        hint = "leave the degrees at 1 in this stage (`parallel: {zero: 1}`), or leave quantize out"
        yield Refusal(path=("model", "quantize"), what=what, hint=hint)


def ppo_samples_with_the_whole_model(spot: Spot) -> Iterator[Refusal]:
    if isinstance(spot.stage, Ppo) and spot.asked.replica > 1:
        path = spot.of_stage("parallel") if spot.stage.parallel is not None else spot.of_stage()
        what = f"ppo with {degrees_text(spot.asked)}: every rank samples answers with the whole model"
        yield Refusal(path=path, what=what, hint="give this stage a layout of its own: `parallel: {zero: 3}`")


def balance_needs_a_pipeline(spot: Spot) -> Iterator[Refusal]:
    if spot.asked.balance != "parameters" and spot.asked.pipeline == 1:
        what = f"{spot.asked.balance} has no effect: there is no pipeline"
        yield Refusal(path=spot.parallel("balance"), what=what, hint="remove it, or ask for a pipeline degree")


DEGREE_RULES: tuple[Rule, ...] = (
    Rule(
        code="E223",
        refuses="any degree above 1 with a family that no table has",
        because="how matrices are cut, and where a pipeline may be, is a table of families (train/families.py)",
        instead="degrees of 1; data parallelism with ZeRO works",
        find=degrees_need_a_known_family,
        proof=("ours: train/families.py",),
    ),
    Rule(
        code="E201",
        refuses="degrees whose product does not divide the ranks",
        because="every replica needs tensor x pipeline x sequence ranks; what is left over would do nothing",
        instead="the nearest degrees that divide, or another number of ranks",
        find=degrees_divide_the_ranks,
        proof=("arithmetic",),
    ),
    Rule(
        code="E217",
        refuses="a tensor degree that does not divide attention heads, key/value heads and the columns of the MLP",
        because="each rank computes whole heads and as many columns as every other",
        instead="the nearest degrees that divide all three",
        find=tensor_divides_the_model,
        proof=(
            "ours: train/sharding.py gives every rank as many heads and columns as every other",
            "tests/stages/test_refusals.py::test_deepspeeds_own_tensor_parallelism_cuts_unequal_parts_and_ours_does_not",
        ),
    ),
    Rule(
        code="E219",
        refuses="more pipeline stages than the model has blocks",
        because="a stage without a block would only pass on what it gets",
        instead="the nearest smaller degree",
        find=blocks_fill_the_pipeline,
        proof=("tests/stages/test_refusals.py::test_a_pipeline_stage_without_a_block_has_nothing_to_optimise",),
    ),
    Rule(
        code="E219",
        refuses="a pipeline with ZeRO 0, 2 or 3",
        because="ZeRO 0 puts only the first stage's weights into the norm that clips (DeepSpeed 0.19.8 runtime/utils.py:394),"
        " 2 and 3 are refused by the pipeline engine (runtime/pipe/engine.py:76)",
        instead="ZeRO 1",
        find=pipeline_runs_at_zero_1,
        proof=(
            "tests/stages/traps/test_pipeline.py::test_clipping_at_zero_0_takes_the_norm_of_the_first_stage",
            "tests/stages/test_refusals.py::test_zero_2_and_3_are_refused_under_a_pipeline",
        ),
    ),
    Rule(
        code="E218",
        refuses="a sequence degree that does not suit the heads",
        because="Ulysses gives each rank whole attention heads; key/value heads are split, or copied where they are fewer"
        " (runtime/sequence_parallel/ulysses_sp.py:148)",
        instead="the nearest degree that does",
        find=sequence_divides_the_heads,
        proof=("tests/stages/test_refusals.py::test_ulysses_refuses_heads_that_it_cannot_spread",),
    ),
    Rule(
        code="E218",
        refuses="sequence parallelism together with tensor or pipeline parallelism",
        because="Ulysses shares heads that tensor ranks have shared already, and the pipeline engine knows no sequence group",
        instead="one of them",
        find=sequence_stands_alone,
        proof=(
            "tests/stages/test_refusals.py::test_sequence_parallelism_is_refused_in_a_pipeline_and_beside_tensor_parallelism",
        ),
    ),
    Rule(
        code="E218",
        refuses="sequence parallelism with packing in sft",
        because="Ulysses drops every mask (ulysses_sp.py:532): packed rows would see each other",
        instead="packing: false",
        find=sequence_sees_no_masks,
        proof=("tests/stages/traps/test_sequence.py::test_packed_rows_see_each_other",),
    ),
    Rule(
        code="E218",
        refuses="sequence parallelism where a sliding window is smaller than a row",
        because="Ulysses drops every mask (ulysses_sp.py:532): attention would be full, losses off by 8e-3 to 3e-2 (measured)",
        instead="data.max_tokens of at most the window, or tensor parallelism",
        find=sequence_sees_no_window,
        proof=("tests/stages/traps/test_sequence.py::test_a_sliding_window_becomes_full_attention",),
    ),
    Rule(
        code="E218",
        refuses="sequence parallelism with eager attention",
        because="DeepSpeed refuses it (ulysses_sp.py:470)",
        instead="sdpa",
        find=sequence_needs_a_kernel,
        proof=("tests/stages/test_refusals.py::test_ulysses_refuses_eager_attention",),
    ),
    Rule(
        code="E220",
        refuses="any degree above 1 on a 4-bit base",
        because="packed weights are blocks of 64 values behind each other, not matrices that can be cut",
        instead="degrees of 1 in sft, reward and dpo, or no quantize",
        find=quantized_weights_stay_whole,
        proof=("tests/stages/test_refusals.py::test_packed_weights_cannot_be_cut",),
    ),
    Rule(
        code="E220",
        refuses="ppo with any degree above 1",
        because="the rollout samples with the whole model on every rank",
        instead="`parallel: {zero: 3}` in the stage",
        find=ppo_samples_with_the_whole_model,
        proof=("ours: train/rollout.py",),
    ),
    Rule(
        code="E221",
        refuses="balance: time without a pipeline",
        because="there is nothing to balance",
        instead="a pipeline degree, or no balance",
        find=balance_needs_a_pipeline,
        proof=("ours: train/balance.py",),
    ),
)
