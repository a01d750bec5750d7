"""The embedded corpus -> rows of a stage. The walk over the standard library is done once for all stages of a job."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import islice

from launcher.spec.stages import Kind
from launcher.train import pydocs, pydocs_rows
from launcher.train.canonical import BadRow, Dialogue, Document, Pair, Place, Prompt, Row, Side, message

FORMAT = 1  # raised when the rows made from the same documentation change


class Corpus:
    """Documentation of the running Python, read when first asked for."""

    def __init__(self, seed: int):
        self.seed = seed

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{FORMAT} {self.seed} {pydocs.corpus_fingerprint()}".encode()).hexdigest()

    @cached_property
    def docs(self) -> list[pydocs.Doc]:
        return pydocs.all_docs()

    @cached_property
    def lessons(self) -> list[pydocs_rows.Lesson]:
        return pydocs_rows.lessons(self.docs, self.seed)

    def rows(self, kind: Kind) -> Iterator[tuple[Side, Row]]:
        if kind == "pretrain":
            for number, (held_out, text) in enumerate(pydocs_rows.texts(self.docs), start=1):
                yield _side(held_out), Document(Place("python-docs", number), text)
            return
        for number, lesson in enumerate(self.lessons, start=1):
            yield _side(lesson.held_out), _row(kind, Place("python-docs", number), lesson)


class CorpusRows:
    """RowSource of one stage. `limit` counts training rows; the held-out rows are always all of them."""

    def __init__(self, corpus: Corpus, kind: Kind, limit: int | None):
        self.corpus, self.kind, self.limit = corpus, kind, limit

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.corpus.fingerprint} {self.kind} {self.limit}".encode()).hexdigest()

    def rows(self) -> Iterator[tuple[Side, Row] | BadRow]:
        yield from islice((pair for pair in self.corpus.rows(self.kind) if pair[0] == "train"), self.limit)
        yield from (pair for pair in self.corpus.rows(self.kind) if pair[0] == "held_out")


def _side(held_out: bool) -> Side:
    return "held_out" if held_out else "train"


def _row(kind: Kind, place: Place, lesson: pydocs_rows.Lesson) -> Row:
    prompt = [message("user", lesson.question)]
    if kind == "sft":
        return Dialogue(place, [*prompt, message("assistant", lesson.answer)], plain=True)
    if kind == "ppo":
        return Prompt(place, prompt, plain=True)
    return Pair(place, prompt, chosen=lesson.answer, rejected=lesson.worse, group=lesson.damage, plain=True)
