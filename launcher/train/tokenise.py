"""Rows -> the columns that a stage trains on, each with its length measured before anything could be cut.

Nothing is dropped or written here (see train/prepared.py), and nothing is ever truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.errors import LauncherError, Problem
from launcher.spec.stages import Kind
from launcher.train.canonical import BadRow, Dialogue, Document, Pair, Prompt, Row, message
from launcher.train.chat import Chat, Encoded, Unrenderable

NO_LOSS = -100
Columns = dict[str, list[int] | str]
ID_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "pretrain": ("input_ids", "labels"),
    "sft": ("input_ids", "labels"),
    "reward": ("chosen_ids", "rejected_ids"),
    "dpo": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "ppo": ("prompt_ids",),
}
TEXT_COLUMNS: dict[Kind, tuple[str, ...]] = {"reward": ("group",), "dpo": ("group",)}


@dataclass(frozen=True, slots=True)
class Tokenised:
    """One row of a stage. `length` is what data.max_tokens is compared with: the longer side of a pair, prompt included."""

    columns: Columns
    length: int
    tokens: int


def tokenise(rows: Sequence[Row], chat: Chat, kind: Kind, loss_on: Literal["answers", "all"]) -> list[Tokenised | BadRow]:
    """One result a row, in order. LauncherError where the rows need a chat template and there is none, or it does not fit."""
    if chat.template is None and any(not isinstance(row, Document) and not row.plain for row in rows):
        raise LauncherError(_no_template())
    if kind == "pretrain":
        return [_whole(ids) for ids in chat.documents([_text(row) for row in rows])]
    if kind == "sft":
        return _sft(rows, chat, loss_on)
    if kind == "ppo":
        prompts = [row for row in rows if isinstance(row, Prompt)]
        encoded = chat.prompts([row.messages for row in prompts])
        return [_prompt(row, item) for row, item in zip(prompts, encoded, strict=True)]
    return _pairs([row for row in rows if isinstance(row, Pair)], chat, kind)


def _no_template() -> Problem:
    what = "the tokenizer has no chat template, and the data are dialogues or instructions, not one prompt with its answer"
    hint = "data.shape: prompt_completion (columns prompt and completion), or a tokenizer with a chat template"
    return Problem(code="E541", where="model.tokenizer", what=what, hint=hint)


def _text(row: Row) -> str:
    assert isinstance(row, Document)
    return row.text


def _whole(ids: list[int]) -> Tokenised:
    return Tokenised({"input_ids": ids, "labels": ids}, len(ids), len(ids))


def _sft(rows: Sequence[Row], chat: Chat, loss_on: Literal["answers", "all"]) -> list[Tokenised | BadRow]:
    """Texts count as a whole (shapes.py lets them in only with loss_on: all), dialogues by their answers or as a whole."""
    texts = iter(chat.documents([row.text for row in rows if isinstance(row, Document)]))
    write = chat.whole_dialogues if loss_on == "all" else chat.dialogues
    talks = iter(write([row.messages for row in rows if isinstance(row, Dialogue)]))
    return [_whole(next(texts)) if isinstance(row, Document) else _answered(row, next(talks)) for row in rows]


def _answered(row: Row, encoded: Encoded | list[int] | Unrenderable) -> Tokenised | BadRow:
    if isinstance(encoded, Unrenderable):
        return BadRow(row.place, str(encoded))
    if isinstance(encoded, list):
        return _whole(encoded)
    labels = [token if counts else NO_LOSS for token, counts in zip(encoded.ids, encoded.answer, strict=True)]
    return Tokenised({"input_ids": encoded.ids, "labels": labels}, len(labels), len(labels))


def _prompt(row: Row, ids: list[int] | Unrenderable) -> Tokenised | BadRow:
    if isinstance(ids, Unrenderable):
        return BadRow(row.place, str(ids))
    return Tokenised({"prompt_ids": ids}, len(ids), len(ids))


def _pairs(rows: Sequence[Pair], chat: Chat, kind: Kind) -> list[Tokenised | BadRow]:
    chosen = chat.dialogues([[*row.prompt, message("assistant", row.chosen)] for row in rows])
    rejected = chat.dialogues([[*row.prompt, message("assistant", row.rejected)] for row in rows])
    make = _reward_row if kind == "reward" else _dpo_row
    made: list[Tokenised | BadRow] = []
    for row, good, bad in zip(rows, chosen, rejected, strict=True):
        if isinstance(good, Unrenderable) or isinstance(bad, Unrenderable):
            made.append(BadRow(row.place, str(good if isinstance(good, Unrenderable) else bad)))
        else:
            made.append(make(row, _last_answer(good), _last_answer(bad)))
    return made


def _last_answer(encoded: Encoded) -> tuple[list[int], list[int]]:
    """(everything before the last answer, the last answer): earlier answers of a dialogue belong to the prompt."""
    end = len(encoded.answer) - encoded.answer[::-1].index(True)
    start = end
    while start > 0 and encoded.answer[start - 1]:
        start -= 1
    return encoded.ids[:start], encoded.ids[start:end]


def _reward_row(row: Pair, chosen: tuple[list[int], list[int]], rejected: tuple[list[int], list[int]]) -> Tokenised | BadRow:
    good, bad = chosen[0] + chosen[1], rejected[0] + rejected[1]
    columns: Columns = {"chosen_ids": good, "rejected_ids": bad, "group": row.group}
    return _compared(row, good, bad, columns, len(good) + len(bad))


def _dpo_row(row: Pair, chosen: tuple[list[int], list[int]], rejected: tuple[list[int], list[int]]) -> Tokenised | BadRow:
    """One prompt for both answers: where the first characters of an answer change the prompt's last token, the shorter
    common part is the prompt and the rest belongs to the answers."""
    good, bad = chosen[0] + chosen[1], rejected[0] + rejected[1]
    cut = min(len(chosen[0]), len(rejected[0]))
    while good[:cut] != bad[:cut]:
        cut -= 1
    columns: Columns = {"prompt_ids": good[:cut], "chosen_ids": good[cut:], "rejected_ids": bad[cut:], "group": row.group}
    return _compared(row, good, bad, columns, cut + len(good) - cut + len(bad) - cut)


def _compared(row: Pair, good: list[int], bad: list[int], columns: Columns, tokens: int) -> Tokenised | BadRow:
    if good == bad:
        return BadRow(row.place, "chosen and rejected are the same once they are tokenised")
    return Tokenised(columns, max(len(good), len(bad)), tokens)
