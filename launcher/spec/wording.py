"""How messages show values, name fields and suggest words. Pure text, the same for the same input."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

from launcher.errors import printable

MAX_SHOWN = 60


def shown(value: object) -> str:
    """A value as the user would write it on one line: text in quotes, controls escaped, cut after 60 characters."""
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text):,} characters)"


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was most likely meant, or None. A different case or _ and - alone never count as a difference."""
    candidates = {_plain(candidate): candidate for candidate in words}
    begun = [candidates[plain] for plain in candidates if len(word) > 2 and plain.startswith(_plain(word))]
    if len(begun) == 1:
        return begun[0]
    found = difflib.get_close_matches(_plain(word[:80]), candidates, n=1, cutoff=0.6)
    return candidates[found[0]] if found else None


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def listed(words: Iterable[object]) -> str:
    """`a, b or c`."""
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
