"""Learning rates of all steps, by hand."""

from __future__ import annotations

import math

import pytest

from launcher.spec.data import DataSpec
from launcher.spec.stages import Sft
from launcher.train.schedule import learning_rate


def rates(schedule: str, warmup: float, steps: int) -> list[float]:
    stage = Sft(kind="sft", data=DataSpec(source="rows.jsonl"), lr=1.0, schedule=schedule, warmup=warmup)
    return [learning_rate(stage, step, steps) for step in range(steps)]


def test_the_first_step_moves_and_the_last_of_the_warm_up_is_the_peak():
    assert rates("constant", 0.4, 5) == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_a_part_of_a_step_of_warm_up_is_a_whole_step():
    assert rates("constant", 0.25, 5) == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_linear_falls_evenly_and_would_be_zero_one_step_behind_the_last():
    assert rates("linear", 0.2, 5) == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.25])


def test_cosine_is_half_in_the_middle():
    assert rates("cosine", 0.0, 4) == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_over_the_whole_stage_ends_at_the_peak(schedule):
    assert rates(schedule, 0.9, 4) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_stage_of_one_step_trains_at_the_peak(schedule):
    assert rates(schedule, 0.03, 1) == rates(schedule, 0.0, 1) == [1.0]
