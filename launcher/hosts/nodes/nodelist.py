"""SLURM's short list of hosts -> their names: `gpu[01-03,7],login` names gpu01, gpu02, gpu03, gpu7 and login. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

MOST_HOSTS = 100_000
# Parts between commas outside of brackets; a part is plain text and ranges in brackets, in any order.
_PART = re.compile(r"(?:[^\[\],]|\[[0-9,-]+\])+")
_PIECE = re.compile(r"\[([0-9,-]+)\]|([^\[\],]+)")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def expand_nodelist(text: str) -> list[str]:
    """Names in their order. ValueError where the text is no such list, or one of more hosts than there can be."""
    if not re.fullmatch(f"{_PART.pattern}(?:,{_PART.pattern})*", text):
        raise ValueError(f"{text[:200]!r} is no list of hosts")
    names: list[str] = []
    for part in _PART.findall(text):
        pieces = [list(_numbers(ranges)) if ranges else [plain] for ranges, plain in _PIECE.findall(part)]
        for words in itertools.product(*pieces):
            names.append("".join(words))
            if len(names) > MOST_HOSTS:
                raise ValueError(f"{text[:200]!r} names more than {MOST_HOSTS:,} hosts")
    return names


def _numbers(ranges: str) -> Iterator[str]:
    """`01-03,7`: numbers are as wide as the first of their range is written."""
    for one in ranges.split(","):
        found = _RANGE.fullmatch(one)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise ValueError(f"{one[:40]!r} is no range of hosts")
        first, last = int(found[1]), int(found[2] or found[1])
        if last - first >= MOST_HOSTS:
            raise ValueError(f"{one!r} names more than {MOST_HOSTS:,} hosts")
        yield from (f"{number:0{len(found[1])}d}" for number in range(first, last + 1))
