"""Dialogues -> tokens, and where in them the answers stand.

With a chat template, answers are found by its {% generation %} tags, or else by rendering the dialogue turn by turn: what a
turn adds is its answer, provided that later turns change nothing before them. Without a template only one prompt followed by
one completion can be written. An answer always ends with the end token, and what a template writes after it is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from launcher.errors import LauncherError, Problem
from launcher.train.canonical import Message
from launcher.train.tokenizers import TEMPLATE_ERRORS

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
Made = TypeVar("Made")
Span = tuple[int, int]  # characters [start, end)


class Unrenderable(ValueError):
    """The template refuses one dialogue, for example because two user turns follow each other."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a dialogue and the spans of its answers, end tokens included."""

    text: str
    answers: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids; `answer[i]` says whether token i belongs to an answer."""

    ids: list[int]
    answer: list[bool]


class Chat:
    """A tokenizer as a writer of dialogues."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.template: str | None = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self.end: str = tokenizer.eos_token
        self.end_id: int = tokenizer.eos_token_id
        self.tagged = bool(self.template and GENERATION_TAG.search(self.template))
        # Beginning token, where the tokenizer adds one. Templates write it themselves.
        self.prefix: list[int] = _prefix_ids(tokenizer)

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text as beginning token (if any), tokens, end token."""
        return [self._closed(ids) for ids in self._ids(texts)]

    def dialogues(self, dialogues: Sequence[Sequence[Message]]) -> list[Encoded | Unrenderable]:
        """The tokens of each dialogue with its answers marked."""
        rendered = [self._try(self._render_answers, dialogue) for dialogue in dialogues]
        fine = [item for item in rendered if isinstance(item, Rendered)]
        encoded = iter(self._encode(fine))
        return [next(encoded) if isinstance(item, Rendered) else item for item in rendered]

    def whole_dialogues(self, dialogues: Sequence[Sequence[Message]]) -> list[list[int] | Unrenderable]:
        """The tokens of each dialogue, for a loss on all of it: answers need not be found, only an end token."""
        texts = [self._try(self._text, dialogue) for dialogue in dialogues]
        encoded = self._encode_texts(texts)
        if any(isinstance(ids, list) and self.end_id not in ids for ids in encoded):
            raise self._misfit(f"it writes no end token {self.end}, so a model would never learn to stop")
        return encoded

    def prompts(self, dialogues: Sequence[Sequence[Message]]) -> list[list[int] | Unrenderable]:
        """The tokens of each dialogue up to where its next answer begins."""
        return self._encode_texts([self._try(self._prompt_text, dialogue) for dialogue in dialogues])

    def _closed(self, ids: list[int]) -> list[int]:
        head = [] if ids[: len(self.prefix)] == self.prefix else self.prefix
        return [*head, *ids] if ids and ids[-1] == self.end_id else [*head, *ids, self.end_id]

    def _try(self, render: Callable[[Sequence[Message]], Made], dialogue: Sequence[Message]) -> Made | Unrenderable:
        try:
            return render(dialogue)
        except Unrenderable as error:
            return error

    def _render_answers(self, dialogue: Sequence[Message]) -> Rendered:
        if self.template is None:
            text = self._text(dialogue)
            return Rendered(text, ((len(dialogue[0]["content"]), len(text)),))
        if self.tagged:
            text, spans = self._render_tagged(dialogue)
        else:
            text, spans = self._render_by_turns(dialogue)
        return Rendered(text, tuple(self._until_end(text, span) for span in spans))

    def _render_tagged(self, dialogue: Sequence[Message]) -> tuple[str, list[Span]]:
        texts, spans = self._jinja(dialogue, return_assistant_tokens_mask=True)
        if len(spans[0]) != sum(turn["role"] == "assistant" for turn in dialogue):
            raise self._misfit("its {% generation %} tags do not stand around every answer")
        return texts[0], spans[0]

    def _render_by_turns(self, dialogue: Sequence[Message]) -> tuple[str, list[Span]]:
        text, spans = self._jinja(dialogue)[0][0], []
        for index, turn in enumerate(dialogue):
            if turn["role"] == "assistant":
                after = self._jinja(dialogue[: index + 1])[0][0]
                if not text.startswith(after):
                    raise self._misfit("it writes earlier turns differently once later ones follow")
                spans.append((self._answer_start(dialogue[:index], after), len(after)))
        return text, spans

    def _answer_start(self, before: Sequence[Message], text: str) -> int:
        """Characters of `text` before its last answer: as rendered for generation, or without where the template has none."""
        for generation_prompt in (True, False):
            head = self._jinja(before, add_generation_prompt=generation_prompt)[0][0]
            if text.startswith(head):
                return len(head)
        raise self._misfit("it writes a prompt differently once its answer follows")

    def _text(self, dialogue: Sequence[Message]) -> str:
        if self.template is not None:
            return self._jinja(dialogue)[0][0]
        prompt, completion = dialogue
        text = prompt["content"] + completion["content"]
        return text if text.endswith(self.end) else text + self.end

    def _prompt_text(self, dialogue: Sequence[Message]) -> str:
        if self.template is None:
            return dialogue[0]["content"]
        return self._jinja(dialogue, add_generation_prompt=True)[0][0]

    def _until_end(self, text: str, span: Span) -> Span:
        """The span up to and including its end token, which tags may leave just outside; nothing after it."""
        start, end = span
        last = text.rfind(self.end, start, end)
        if last >= 0:
            return start, last + len(self.end)
        if text.startswith(self.end, end):
            return start, end + len(self.end)
        raise self._misfit(f"it does not end an answer with the end token {self.end}, so a model would never learn to stop")

    def _encode_texts(self, texts: Sequence[str | Unrenderable]) -> list[list[int] | Unrenderable]:
        ids = iter(self._ids([text for text in texts if isinstance(text, str)]))
        head = [] if self.template else self.prefix
        return [[*head, *next(ids)] if isinstance(text, str) else text for text in texts]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:  # the tokenizer fails on an empty batch
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]

    def _encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        if not rendered:
            return []
        texts = [item.text for item in rendered]
        batch = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
        head = [] if self.template else self.prefix
        made = []
        for item, ids, offsets in zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True):
            if _straddles(offsets, item.answers):
                made.append(self._encode_apart(item, head))
            else:
                made.append(Encoded([*head, *ids], [False] * len(head) + _in_spans(offsets, item.answers)))
        return made

    def _encode_apart(self, item: Rendered, head: list[int]) -> Encoded:
        """Prompt and answer tokenised on their own, as they are when the model answers: "so " + "yes" would merge to " yes"."""
        cuts = [0, *(edge for span in item.answers for edge in span), len(item.text)]
        pieces = self._ids([item.text[start:end] for start, end in pairwise(cuts)])
        marks = [index % 2 == 1 for index, ids in enumerate(pieces) for _ in ids]
        return Encoded([*head, *(token for ids in pieces for token in ids)], [False] * len(head) + marks)

    def _jinja(self, dialogue: Sequence[Message], **options: bool) -> tuple[list[str], list[list[Span]]]:
        assert self.template is not None
        try:
            return render_jinja_template(
                conversations=[list(dialogue)], chat_template=self.template, **options, **self.tokenizer.special_tokens_map
            )
        except TEMPLATE_ERRORS as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise Unrenderable(f"the chat template refuses the dialogue: {reason}") from error

    def _misfit(self, reason: str) -> LauncherError:
        what = f"the chat template of the tokenizer does not fit training on answers: {reason}"
        hint = "use a tokenizer whose template has {% generation %} tags around answer and end token, or stage.loss_on: all"
        return LauncherError(Problem(code="E542", where="model.tokenizer", what=what, hint=hint))


def _straddles(offsets: Sequence[Span], spans: Sequence[Span]) -> bool:
    """Whether a token begins before an answer and ends inside of it."""
    tokens = iter(offsets)
    return any(next((start for start, end in tokens if end > first), first) < first for first, _ in spans)


def _in_spans(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """A token belongs to an answer when it begins inside of it. Both are in rising order."""
    marks, current = [], 0
    for start, end in offsets:
        while current < len(spans) and start >= spans[current][1]:
            current += 1
        marks.append(current < len(spans) and start >= spans[current][0] and end > start)
    return marks


def _prefix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    with_special = tokenizer("a")["input_ids"]
    without = tokenizer("a", add_special_tokens=False)["input_ids"]
    return with_special[: len(with_special) - len(without)] if with_special[-len(without) :] == without else []
