"""Documentation -> rows for every stage: texts, questions with their answers, and preference pairs with a known damage.

An answer is the first sentence of a docstring. A pair sets it against the same sentence damaged in one of four ways; the
kind of damage is the pair's group, so that results say what a model tells apart and what it does not. Each row draws from its
own generator, seeded by the job's seed and the row's name: a new docstring moves no other row.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.train.pydocs import Doc

QUESTIONS = ("What does `{}` do?", "Explain `{}`.", "What is `{}` for?", "Describe `{}` in one sentence.")
DAMAGES = ("shuffle", "cut", "loop", "wrong")
HELD_OUT_PERCENT = {"texts": 2, "questions": 5}
MIN_WORDS, MAX_WORDS = 4, 24
SAME_ANSWER_AT_MOST = 3

_SIGNATURE_LINE = re.compile(r"^[\w.]+\(.*\)( ->.*)?$")
_SIGNATURE_HEAD = re.compile(r"^[\w.]+\([^)]*\)\s*(->|--?)\s*[\w\[\], |]*\s*(--|:)?\s*")
_SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.S)
_NOT_PROSE = ("::", ">>>", "TODO", "XXX", "Deprecated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One question with its answer and a worse one."""

    name: str
    question: str
    answer: str
    worse: str
    damage: str
    held_out: bool


def texts(docs: list[Doc]) -> Iterator[tuple[bool, str]]:
    """(held out, text) of every document: signature and docstring, or the language topic."""
    for doc in docs:
        text = doc.text.strip() if doc.kind == "topic" else f"{doc.signature}\n{doc.text.strip()}"
        yield is_held_out(f"text {doc.name}", percent=HELD_OUT_PERCENT["texts"]), text


def lessons(docs: list[Doc], seed: int) -> list[Lesson]:
    """The question rows of all stages: the same for the same Python and seed."""
    answers = _answers(docs)
    pool = list(answers.values())
    return [_lesson(name, answer, pool, seed) for name, answer in answers.items()]


def is_held_out(name: str, *, percent: int) -> bool:
    """By a hash of the name: a row never changes sides, whatever else is in the corpus."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 100 < percent


def _lesson(name: str, answer: str, pool: list[str], seed: int) -> Lesson:
    rng = random.Random(f"{seed} {name}")
    question = rng.choice(QUESTIONS).format(name)
    damage = rng.choice(DAMAGES)
    held_out = is_held_out(name, percent=HELD_OUT_PERCENT["questions"])
    worse = damaged(answer, damage, pool, rng)
    return Lesson(name=name, question=question, answer=answer, worse=worse, damage=damage, held_out=held_out)


def _answers(docs: list[Doc]) -> dict[str, str]:
    """Short name -> first sentence. Private names are left out, and stock phrases after their third use."""
    found: dict[str, str] = {}
    uses: dict[str, int] = {}
    for doc in docs:
        short = ".".join(doc.name.split(".")[-3:])
        if doc.kind == "topic" or short in found or any(part.startswith("_") for part in short.split(".")):
            continue
        answer = first_sentence(doc.text)
        if answer and uses.setdefault(answer, 0) < SAME_ANSWER_AT_MOST:
            uses[answer] += 1
            found[short] = answer
    return found


def first_sentence(text: str) -> str | None:
    """The first sentence of a docstring where it is plain English prose of 4 to 24 words, else None."""
    paragraph = text.strip().split("\n\n")[0]
    first, _, rest = paragraph.partition("\n")
    if _SIGNATURE_LINE.match(first.strip()):  # C functions begin with their signature
        paragraph = rest
    paragraph = re.sub(r"\s+", " ", _SIGNATURE_HEAD.sub("", paragraph.strip())).strip()
    match = _SENTENCE.match(paragraph)
    sentence = match.group(1) if match else (paragraph + "." if paragraph and len(paragraph) < 160 else "")
    if not sentence or not sentence[0].isupper() or not sentence.isascii():
        return None
    if any(mark in sentence for mark in _NOT_PROSE):
        return None
    return sentence if MIN_WORDS <= len(sentence.split()) <= MAX_WORDS else None


def damaged(answer: str, damage: str, pool: list[str], rng: random.Random) -> str:
    """A worse answer: words mixed, cut in the middle, its beginning repeated, or the answer to something else."""
    words = answer.rstrip(".").split()
    if damage == "shuffle" and len(set(words)) > 1:
        mixed = words[:]
        while mixed == words:
            rng.shuffle(mixed)
        return " ".join(mixed) + "."
    if damage == "loop":
        length = rng.randint(1, max(1, len(words) // 2))
        return " ".join((words[:length] * 8)[: len(words) + 4])
    if damage == "wrong" and len(set(pool)) > 1:
        other = answer
        while other == answer:
            other = rng.choice(pool)
        return other
    return " ".join(words[: max(1, len(words) // 2)])
