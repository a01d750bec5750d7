"""What a stage tells of its steps: medians behind the first few."""

from __future__ import annotations

from launcher.train.result import FEWEST_TIMED_STEPS, KEPT_STEPS, WARM_UP_STEPS, Pace


def paced(*steps: tuple[float, list[float]]) -> dict:
    pace = Pace()
    for seconds, row_tokens in steps:
        pace.add(seconds, row_tokens)
    return pace.figures()


def test_the_first_steps_do_not_count_and_one_slow_step_says_nothing():
    figures = paced(*[(9.0, [64.0])] * WARM_UP_STEPS, (1.0, [64.0]), (1.2, [64.0]), (30.0, [64.0]))
    assert figures == {"step_s": 1.2, "row_tokens": 64.0, "longest_row_tokens": 64.0, "timed_steps": 3}


def test_too_few_steps_tell_no_time_and_still_the_longest_row():
    figures = paced(*[(1.0, [16.0, 48.0])] * (WARM_UP_STEPS + FEWEST_TIMED_STEPS - 1))
    assert (figures["step_s"], figures["row_tokens"], figures["longest_row_tokens"]) == (None, None, 48.0)
    assert paced()["longest_row_tokens"] is None


def test_rows_are_averaged_over_the_micro_batches_of_a_step():
    assert paced(*[(1.0, [16.0, 48.0])] * 9)["row_tokens"] == 32.0


def test_a_stage_of_a_million_steps_keeps_the_last_thousand():
    pace = Pace()
    for step in range(3 * KEPT_STEPS):
        pace.add(float(step), [8.0])
    assert pace.figures()["timed_steps"] == KEPT_STEPS
    assert pace.figures()["step_s"] == 2.5 * KEPT_STEPS - 0.5
