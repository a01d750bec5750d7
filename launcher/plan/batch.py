"""Batch arithmetic: global = micro x accumulation x dp, exactly, and the nearest numbers that work where it does not.

DERIVE, pure arithmetic.
"""

from __future__ import annotations


def micro_choices(global_batch: int, *, dp: int) -> list[int]:
    """Every micro-batch that divides the rows of one rank, largest first. Empty where dp does not divide global."""
    if global_batch % dp:
        return []
    rows = global_batch // dp
    small = [micro for micro in range(1, int(rows**0.5) + 1) if rows % micro == 0]
    return sorted({*small, *(rows // micro for micro in small)}, reverse=True)


def nearest_multiples(value: int, unit: int) -> list[int]:
    """The multiples of `unit` around `value`, nearest first (the larger one on a tie), none below `unit`."""
    below, above = value // unit * unit, -(-value // unit) * unit
    choices = {number for number in (below, above) if number >= unit}
    return sorted(choices, key=lambda number: (abs(number - value), -number))


def nearest_micro(micro: int, *, rows: int) -> int:
    """The divisor of `rows` that is nearest to `micro`."""
    return min((abs(choice - micro), choice) for choice in micro_choices(rows, dp=1))[1]
