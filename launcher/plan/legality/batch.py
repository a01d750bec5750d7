"""Rules about batch arithmetic and the lengths of rows."""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm

from launcher.plan.asked import answer_tokens, batch_of, batch_path, global_of, rollout_of
from launcher.plan.batch import nearest_micro, nearest_multiples
from launcher.plan.legality.nearest import searched_degrees_fit
from launcher.plan.legality.rule import Refusal, Rule, Spot, spots_of
from launcher.spec.stages import Ppo


def rows_fit_the_positions(spot: Spot) -> Iterator[Refusal]:
    positions, asked = spot.shape.positions, spot.stage.data.max_tokens
    if asked and asked > positions:
        what = f"{asked} is more than the model's {positions} positions"
        yield Refusal(path=spot.of_stage("data", "max_tokens"), what=what, hint=f"use at most {positions}")


def answers_fit_the_positions(spot: Spot) -> Iterator[Refusal]:
    positions, answer, prompt = spot.shape.positions, answer_tokens(spot.stage), spot.stage.data.max_tokens
    if not isinstance(spot.stage, Ppo) or (prompt and prompt > positions):
        return
    path = spot.of_stage("max_new_tokens")
    if prompt and prompt + answer > positions:
        what = f"prompt {prompt} + answer {answer} = {prompt + answer} tokens is more than the model's {positions} positions"
        room = f"max_new_tokens {positions - prompt} or data.max_tokens {positions - answer}"
        yield Refusal(path=path, what=what, hint=f"use {room}" if positions > max(prompt, answer) else "lower both")
    elif answer >= positions:
        what = f"{answer} leaves no room for a prompt in the model's {positions} positions"
        yield Refusal(path=path, what=what, hint=f"use {max(1, positions // 2)}")


def batch_divides(spot: Spot) -> Iterator[Refusal]:
    """global = micro x accumulation x dp, for a whole accumulation, in every stage that takes it from the same place."""
    total, micro, dp = global_of(spot.job, spot.stage), batch_of(spot.job, spot.stage).micro_seqs, spot.dp
    path, units = batch_path(spot.job, spot.index, "global"), _units(spot)
    common = lcm(*units.values())
    if dp is None or total % common == 0:
        return
    if searched_degrees_fit(spot):
        return  # fewer replicas of several ranks share the rows
    near = [f"{number} (nearest)" if not rank else str(number) for rank, number in enumerate(nearest_multiples(total, common))]
    hint = f"use {' or '.join(near)}"
    if len(set(units.values())) > 1:
        needs = ", ".join(f"{name} {unit}" for name, unit in units.items())
        what = f"{total} is not a multiple of {common}, which its stages need together ({needs}: micro x data-parallel)"
    elif micro is None:
        what = f"{total} is not a multiple of data-parallel = {dp}{_nothing_else(spot)}"
    else:
        what = f"{total} is not a multiple of micro x data-parallel = {micro} x {dp} = {common}{_nothing_else(spot)}"
        if total % dp == 0:
            hint += f", or micro {nearest_micro(micro, rows=total // dp)}, or leave batch.micro out and let the plan choose"
    yield Refusal(path=path, what=what, hint=hint)


def _nothing_else(spot: Spot) -> str:
    """Where the plan would choose the degrees: why it does not make fewer replicas."""
    if not spot.asked.searches:
        return ""
    return ", and no tensor, pipeline or sequence degree makes replicas that share it" if spot.case.world > 1 else ""


def _units(spot: Spot) -> dict[str, int]:
    """micro x data parallel of every stage that takes its global batch from the same place as this one.

    Stages whose degrees the plan chooses are judged one by one: their replicas are not known yet.
    """
    path = batch_path(spot.job, spot.index, "global")
    others = [spot] if spot.asked.searches else [other for other in spots_of(spot.case) if not other.asked.searches]
    sharing = [other for other in others if batch_path(other.job, other.index, "global") == path]
    return {
        other.stage.stage_name: (batch_of(other.job, other.stage).micro_seqs or 1) * other.dp for other in sharing if other.dp
    }


def rollout_divides(spot: Spot) -> Iterator[Refusal]:
    rollout, total = rollout_of(spot.job, spot.stage), global_of(spot.job, spot.stage)
    if isinstance(spot.stage, Ppo) and rollout % total:
        what = f"{rollout} is not a multiple of batch.global = {total}"
        hint = f"use {' or '.join(map(str, nearest_multiples(rollout, total)))}, or leave it out"
        yield Refusal(path=spot.of_stage("rollout"), what=what, hint=hint)


BATCH_RULES: tuple[Rule, ...] = (
    Rule(
        code="E207",
        refuses="rows longer than the model's positions",
        because="there is no position for what is behind them",
        instead="at most the positions",
        find=rows_fit_the_positions,
        proof=("tests/stages/test_refusals.py::test_rows_behind_the_last_position_have_none",),
    ),
    Rule(
        code="E208",
        refuses="a ppo prompt and answer that are longer together than the model's positions",
        because="the answer is generated behind the prompt",
        instead="the lengths that fit beside each other",
        find=answers_fit_the_positions,
        proof=(
            "arithmetic",
            "tests/stages/test_refusals.py::test_rows_behind_the_last_position_have_none",
        ),
    ),
    Rule(
        code="E204",
        refuses="a global batch that is no multiple of micro x data parallel",
        because="global = micro x accumulation x data parallel, where data parallel counts replicas, not ranks",
        instead="the nearest multiple, or the nearest micro-batch",
        find=batch_divides,
        proof=(
            "arithmetic",
            "tests/stages/test_refusals.py::test_a_batch_that_is_no_product_is_refused",
        ),
    ),
    Rule(
        code="E204",
        refuses="a ppo rollout that is no multiple of the global batch",
        because="a rollout is trained on in whole batches",
        instead="the nearest multiple",
        find=rollout_divides,
        proof=("ours: train/ppo_steps.py",),
    ),
)
