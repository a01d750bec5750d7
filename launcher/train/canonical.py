"""What a row is once its shape no longer matters: a document, a dialogue, a pair or a prompt. Nouns only.

train/shapes.py makes them from files, train/corpus.py from the embedded documentation, train/tokenise.py turns them into
tokens. The tokenised rows that ranks read are train/rows.py's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, Protocol, TypedDict

Role = Literal["system", "user", "assistant"]
Side = Literal["train", "held_out"]
SIDES: tuple[Side, Side] = ("train", "held_out")


class Message(TypedDict):
    """One turn, as chat templates want it."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands. `row` counts the rows of the file from 1; `line` is given where the file has lines."""

    file: str
    row: int
    line: int | None = None

    def text(self) -> str:
        return f"{self.file}:{self.line}" if self.line is not None else f"{self.file} row {self.row}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    place: Place
    reason: str


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text."""

    place: Place
    text: str

    def key(self) -> str:
        return self.text

    def texts(self) -> Iterator[str]:
        yield self.text


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns with at least one answer. `plain`: one prompt and one completion, which also work without a chat template."""

    place: Place
    messages: list[Message]
    plain: bool = False

    def key(self) -> str:
        return opening(self.messages)

    def texts(self) -> Iterator[str]:
        yield from (turn["content"] for turn in self.messages)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt; `group` names what sets them apart, where the data say so."""

    place: Place
    prompt: list[Message]
    chosen: str
    rejected: str
    group: str = ""
    plain: bool = False

    def key(self) -> str:
        return opening(self.prompt)

    def texts(self) -> Iterator[str]:
        yield from (turn["content"] for turn in self.prompt)
        yield from (self.chosen, self.rejected)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Turns that wait for an answer."""

    place: Place
    messages: list[Message]
    plain: bool = False

    def key(self) -> str:
        return opening(self.messages)

    def texts(self) -> Iterator[str]:
        yield from (turn["content"] for turn in self.messages)


Row = Document | Dialogue | Pair | Prompt


class RowSource(Protocol):
    """Rows of one stage, read again at each call. LauncherError where the data as a whole cannot be used."""

    def fingerprint(self) -> str: ...

    def rows(self) -> Iterator[tuple[Side, Row] | BadRow]: ...


def opening(messages: list[Message]) -> str:
    """The turns before the first answer. They decide on which side of the held-out split a row lies, so that a prompt that is
    held out in one stage is held out in all stages that read the same data."""
    turns = takewhile(lambda turn: turn["role"] != "assistant", messages)
    return json.dumps([[turn["role"], turn["content"]] for turn in turns], ensure_ascii=True)


def share(key: str) -> float:
    """A number in [0, 1) drawn by hash from a row's key: below the held-out fraction, the row is held out."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def message(role: Role, content: str) -> Message:
    return {"role": role, "content": content}
