"""Token rows -> rows of a fixed length. Pure.

`Wrapped` is for pretraining: documents are joined and cut anywhere. `pack_whole` is for answers: rows stay whole, several share
a sequence, and their lengths are kept so that none of them sees another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from launcher.train.tokenise import NO_LOSS, Columns


class Wrapped:
    """Joins what it is given and hands out blocks of exactly `block_tokens`. What is left at the end is not used."""

    def __init__(self, block_tokens: int):
        self.block_tokens = block_tokens
        self.rest: list[int] = []

    def add(self, ids: list[int]) -> Iterator[list[int]]:
        self.rest += ids
        whole = len(self.rest) // self.block_tokens * self.block_tokens
        for start in range(0, whole, self.block_tokens):
            yield self.rest[start : start + self.block_tokens]
        del self.rest[:whole]


def pack_whole(rows: Sequence[Columns], capacity: int) -> list[dict[str, list[int]]]:
    """Best fit decreasing: the longest row first, each into the fullest sequence that still has room for it.

    `seq_lengths` tells the collator where positions start again. The first label of each row is no target: its
    predecessor is the last token of another row.
    """
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]["input_ids"]), index))
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room, bin), rising
    for index in order:
        length = len(rows[index]["input_ids"])
        found = bisect_left(free, (length, -1))
        room, number = free.pop(found) if found < len(free) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(index)
        insort(free, (room - length, number))
    return [_joined([rows[index] for index in members]) for members in bins]


def _joined(rows: Sequence[Columns]) -> dict[str, list[int]]:
    labels = [label for row in rows for label in (NO_LOSS, *row["labels"][1:])]
    return {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "labels": [int(label) for label in labels],
        "seq_lengths": [len(row["input_ids"]) for row in rows],
    }
