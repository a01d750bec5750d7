"""A trap of DeepSpeed: a test that shows it, tied to its entry in docs/deepspeed-traps.md.

    @trap(7)
    def test_…():
        return error, limit     # how wrong raw DeepSpeed is; it would stay under the limit if it behaved

The test passes while the trap is there. It fails when it is gone, so that the guard and the entry go with it, and when the
page has no entry for the installed version.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "deepspeed-traps.md"
ENTRY = re.compile(r"^### (\d+)\. (.+)$", re.MULTILINE)
FACTS = ("Seen in", "Cause", "Size", "Guard", "Test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One heading of the page. `facts` are its bullets by name; None where it lacks one."""

    number: int
    title: str
    facts: dict[str, str | None]


def read_page() -> list[Entry]:
    parts = ENTRY.split(PAGE.read_text(encoding="utf-8"))[1:]
    return [
        Entry(number=int(number), title=title, facts={name: _fact(name, body) for name in FACTS})
        for number, title, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


def _fact(name: str, body: str) -> str | None:
    found = re.search(rf"^- {name}: (.+)$", body, re.MULTILINE)
    return found[1] if found else None


def entry_of(number: int) -> Entry:
    found = [entry for entry in read_page() if entry.number == number]
    assert len(found) == 1, f"{PAGE.name} has {len(found)} entries of number {number}"
    return found[0]


def installed() -> str:
    return version("deepspeed").split("+")[0]


def trap(number: int) -> Callable[[Callable[..., tuple[float, float]]], Callable[..., None]]:
    def mark(test: Callable[..., tuple[float, float]]) -> Callable[..., None]:
        @functools.wraps(test)
        def judged(*args: object, **kwargs: object) -> None:
            entry = entry_of(number)
            seen, guard = entry.facts["Seen in"], entry.facts["Guard"]
            assert guard, f"entry {number} of {PAGE.name} names no guard"
            error, limit = test(*args, **kwargs)
            print(f"trap {number}: {error:.2e}")
            if not error > limit:
                pytest.fail(f"this trap is gone: remove the guard {guard} and entry {number} of {PAGE.name}")
            assert installed() in (seen or ""), f"trap {number} is still there in {installed()}: say so in {PAGE.name}"

        return judged

    return mark
