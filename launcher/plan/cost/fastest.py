"""Candidates -> the one to take: the fastest, or the best in another way of those that are as fast as far as can be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
NEARLY = 1.02  # predicted times closer than this say nothing


def fastest(items: Sequence[Item], *, seconds: Callable[[Item], float], merit: Callable[[Item], Any]) -> Item:
    """Of the items within 2 % of the shortest time the one with the greatest merit, then the shortest time. Not empty."""
    shortest = min(seconds(item) for item in items)
    near = [item for item in items if seconds(item) <= NEARLY * shortest]
    return max(near, key=lambda item: (merit(item), -seconds(item)))
