"""Batch arithmetic is exact, and its hints work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.batch import micro_choices, nearest_micro, nearest_multiples


def test_micro_choices_are_the_divisors_of_the_rows_of_a_rank_largest_first():
    assert micro_choices(64, dp=2) == [32, 16, 8, 4, 2, 1]
    assert micro_choices(24, dp=2) == [12, 6, 4, 3, 2, 1]
    assert micro_choices(30, dp=4) == []


def test_the_nearest_multiples_come_first_and_are_never_zero():
    assert nearest_multiples(500, 128) == [512, 384]
    assert nearest_multiples(3, 8) == [8]
    assert nearest_multiples(12, 8) == [16, 8]


def test_the_nearest_micro_divides():
    assert nearest_micro(5, rows=16) == 4
    assert nearest_micro(100, rows=16) == 16


@given(st.integers(1, 5000), st.integers(1, 64))
def test_every_choice_gives_the_global_batch_back(global_batch, dp):
    for micro in micro_choices(global_batch, dp=dp):
        accumulation = global_batch // dp // micro
        assert micro * accumulation * dp == global_batch


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_every_hint_is_a_multiple_and_no_multiple_is_nearer(value, unit):
    hints = nearest_multiples(value, unit)
    assert hints
    assert all(hint % unit == 0 and hint >= unit for hint in hints)
    assert abs(hints[0] - value) <= max(unit - value, unit / 2)
