"""(cost of each block, number of stages) -> blocks of each pipeline stage. Pure, used by both sides.

The plan weighs blocks by their parameters, the ranks by those or by measured time; both cut here, so that they agree.
"""

from __future__ import annotations

from collections.abc import Sequence


def spread(costs: Sequence[int], *, before: int, behind: int, parts: int) -> tuple[int, ...]:
    """Numbers of consecutive blocks per stage that make the costliest stage cheapest; every stage gets at least one block.

    Costs are whole numbers: parameters, or nanoseconds. `before` is added to the first stage, `behind` to the last. Exact; ties
    give earlier stages more.
    """
    assert 1 <= parts <= len(costs), (parts, len(costs))
    weights = [*costs]
    weights[0] += before
    weights[-1] += behind
    counts: list[int] = []
    stop = len(weights)
    for left in range(parts, 1, -1):
        start = _reach(weights[: stop - 1], left - 1, _least_limit(weights[:stop], left))
        counts.append(stop - start)
        stop = start
    return (stop, *reversed(counts))


def _least_limit(weights: Sequence[int], parts: int) -> int:
    """The cost of the costliest of `parts` stages in the best cut: the smallest limit under which all blocks fit."""
    low, high = max(weights), sum(weights)
    while low < high:
        middle = (low + high) // 2
        if _reach(weights, parts, middle) == len(weights):
            high = middle
        else:
            low = middle + 1
    return low


def _reach(weights: Sequence[int], parts: int, limit: int) -> int:
    """Blocks that fit into `parts` stages, each filled up to the limit from the left."""
    left, filled = parts, 0
    for index, weight in enumerate(weights):
        if filled + weight > limit:
            left, filled = left - 1, 0
            if left == 0 or weight > limit:
                return index
        filled += weight
    return len(weights)
