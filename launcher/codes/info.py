"""CodeInfo: what is said of a code on its page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeInfo:
    """What a code stands for: a title, when it appears, and what usually mends it."""

    title: str
    when: str
    remedy: str
