"""Blocks over pipeline stages: against every other cut."""

from __future__ import annotations

from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.spec.balance import spread


def costliest(costs: list[int], before: int, behind: int, counts: tuple[int, ...]) -> int:
    weights = [*costs]
    weights[0] += before
    weights[-1] += behind
    return max(sum(weights[start:stop]) for start, stop in pairwise([0, *accumulate(counts)]))


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(1, 8),
)
def test_no_other_cut_has_a_cheaper_costliest_stage(costs, before, behind, parts):
    parts = min(parts, len(costs))
    counts = spread(costs, before=before, behind=behind, parts=parts)
    cuts = [tuple(b - a for a, b in pairwise([0, *at, len(costs)])) for at in combinations(range(1, len(costs)), parts - 1)]
    assert sum(counts) == len(costs)
    assert min(counts) >= 1
    best = min(costliest(costs, before, behind, cut) for cut in cuts)
    assert costliest(costs, before, behind, counts) == best


@pytest.mark.parametrize(
    ("layers", "before", "behind", "parts", "counts"),
    [
        (32, 0, 0, 4, (8, 8, 8, 8)),
        (32, 2, 2, 4, (7, 9, 9, 7)),  # an embedding and a head of two blocks each
        (10, 0, 0, 4, (3, 3, 3, 1)),  # ties: earlier stages have more
        (3, 100, 100, 3, (1, 1, 1)),
        (5, 9, 9, 1, (5,)),
    ],
)
def test_equal_blocks(layers, before, behind, parts, counts):
    assert spread([1] * layers, before=before, behind=behind, parts=parts) == counts


def test_a_thousand_blocks_are_spread_at_once():
    assert sum(spread([7] * 1000, before=3, behind=3, parts=64)) == 1000
