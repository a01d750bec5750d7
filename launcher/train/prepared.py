"""Rows of one stage -> tokenised rows on disk, in a cache that is named by content and written once.

An entry `<runs>/.cache/<fingerprint>/` holds train/ and held_out/ (folders of `datasets`) and a manifest (see train/cache.py);
stages/<stage>/prepared.json points at it. Rows are streamed: memory holds one chunk, except where rows are packed whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from launcher.errors import LauncherError, Problem
from launcher.rundir.artifact import read_manifest
from launcher.rundir.folder import RunDir, StageDir, write_json
from launcher.spec.stages import Kind
from launcher.train.cache import cached
from launcher.train.canonical import SIDES, BadRow, Row, RowSource, Side
from launcher.train.chat import Chat
from launcher.train.packing import Wrapped, pack_whole
from launcher.train.tokenise import ID_COLUMNS, TEXT_COLUMNS, Columns, Tokenised, tokenise

FORMAT = 1  # raised when the same rows would be written differently: old entries are then left alone
CHUNK_ROWS = 2000
NUM_SAMPLES, SAMPLE_CHARS = 3, 600
BAD_ROWS_SHOWN = 10
BAD_SHARE_CAP = 0.10  # above it, `bad_rows: skip` would hide that the data are not what the job says

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything besides the rows that decides what is written. `where` names the stage in errors."""

    where: str
    kind: Kind
    max_tokens: int
    min_rows: int  # training rows that one optimizer step uses
    loss_on: Literal["answers", "all"] = "answers"
    packing: bool = False
    bad_rows: Literal["fail", "skip"] = "fail"

    def fingerprint(self, source: RowSource, tokenizer_hash: str) -> str:
        parts = [FORMAT, self.kind, self.max_tokens, self.loss_on, self.packing, self.bad_rows]
        return hashlib.sha256(json.dumps([*parts, source.fingerprint(), tokenizer_hash]).encode()).hexdigest()


def prepare_rows(recipe: Recipe, source: RowSource, chat: Chat, tokenizer_hash: str, cache: Path) -> tuple[Path, bool]:
    """(cache entry, whether it was there already). LauncherError with everything that is wrong with the rows."""
    fingerprint = recipe.fingerprint(source, tokenizer_hash)
    facts: dict[str, object] = {"kind": recipe.kind}
    entry = cache / fingerprint
    hit = cached(entry, fingerprint, lambda folder: facts | _build(recipe, source, chat, folder))
    manifest = read_manifest(entry) or {}
    _check_counts(recipe, manifest)  # also on a hit: the batch may have grown since
    return entry, hit


def check_rows(source: RowSource, *, where: str, bad_rows: Literal["fail", "skip"]) -> None:
    """Read all rows and forget them. LauncherError with the bad ones."""
    tally = _Tally()
    for _ in _good(source.rows(), tally):
        pass
    if problems := _bad_row_problems(where, bad_rows, tally):
        raise LauncherError(problems)


def write_prepared(run: RunDir, stage: StageDir, entry: Path) -> dict[str, object]:
    """Write stages/<stage>/prepared.json and return what it holds."""
    manifest = read_manifest(entry)
    assert manifest is not None
    kept = {name: manifest[name] for name in ("rows", "tokens", "dropped", "fingerprint", "samples")}
    paths = {side: os.path.relpath(entry / side, run.path) for side in SIDES}
    prepared = {"schema": 1, **paths, **kept}
    write_json(stage.prepared, prepared)
    return prepared


class _Tally:
    """What was seen while one entry is built."""

    def __init__(self) -> None:
        self.seen = 0
        self.bad: list[BadRow] = []
        self.too_long: list[int] = []
        self.rows: Counter[Side] = Counter()
        self.tokens: Counter[Side] = Counter()
        self.samples: list[str] = []


def _build(recipe: Recipe, source: RowSource, chat: Chat, folder: Path) -> dict[str, object]:
    tally = _Tally()
    writers = {side: _Writer(folder, side, recipe, chat, tally) for side in SIDES}
    for chunk in chunks(_good(source.rows(), tally), CHUNK_ROWS):
        for side in SIDES:
            rows = [row for row_side, row in chunk if row_side == side]
            writers[side].add(tokenise(rows, chat, recipe.kind, recipe.loss_on) if rows else [])
    for writer in writers.values():
        writer.finish_rows()
    _check_tally(recipe, tally)
    for writer in writers.values():
        writer.save()
    return {
        "rows": {side: tally.rows[side] for side in SIDES},
        "tokens": {side: tally.tokens[side] for side in SIDES},
        "dropped": {"too_long": len(tally.too_long), "bad": len(tally.bad)},
        "samples": tally.samples,
    }


def _good(rows: Iterator[tuple[Side, Row] | BadRow], tally: _Tally) -> Iterator[tuple[Side, Row]]:
    for row in rows:
        tally.seen += 1
        if isinstance(row, BadRow):
            tally.bad.append(row)
        else:
            yield row


def chunks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while chunk := list(islice(items, size)):
        yield chunk


class _Writer:
    """One side of one entry: drops what is too long, packs where the kind packs, and streams the rest to disk."""

    def __init__(self, folder: Path, side: Side, recipe: Recipe, chat: Chat, tally: _Tally):
        self.folder, self.side, self.recipe, self.chat, self.tally = folder, side, recipe, chat, tally
        self.stream = folder / f".{side}.arrow"
        self.writer = ArrowWriter(path=str(self.stream), features=_features(recipe))
        self.wrapped = Wrapped(recipe.max_tokens)
        self.waiting: list[Columns] = []  # rows to be packed whole, which needs all of them

    def add(self, made: list[Tokenised | BadRow]) -> None:
        fitting: list[Tokenised] = []
        for row in made:
            if isinstance(row, BadRow):
                self.tally.bad.append(row)
            elif row.length > self.recipe.max_tokens and self.recipe.kind != "pretrain":
                self.tally.too_long.append(row.length)
            else:
                fitting.append(row)
        self._sample(fitting)
        if self.recipe.kind == "pretrain":
            blocks = chain.from_iterable(self.wrapped.add(row.columns["input_ids"]) for row in fitting)
            self._write([{"input_ids": block, "labels": block} for block in blocks])
        elif self.recipe.packing:
            self.waiting += [row.columns for row in fitting]
        else:
            self._write([row.columns for row in fitting])
        if self.recipe.kind != "pretrain":
            self.tally.tokens[self.side] += sum(row.tokens for row in fitting)

    def finish_rows(self) -> None:
        if self.waiting:
            self._write(pack_whole(self.waiting, self.recipe.max_tokens))

    def save(self) -> None:
        self.writer.finalize()
        Dataset.from_file(str(self.stream)).save_to_disk(str(self.folder / self.side))
        self.stream.unlink()

    def _write(self, rows: list[Columns]) -> None:
        if not rows:
            return
        features = _features(self.recipe)
        columns = {name: [row[name] for row in rows] for name in features}
        self.writer.write_table(pyarrow.table(columns, schema=features.arrow_schema))
        self.tally.rows[self.side] += len(rows)
        if self.recipe.kind == "pretrain":
            self.tally.tokens[self.side] += len(rows) * self.recipe.max_tokens

    def _sample(self, rows: list[Tokenised]) -> None:
        if self.side == "train":
            for row in rows[: NUM_SAMPLES - len(self.tally.samples)]:
                self.tally.samples.append(_sample_text(row.columns, self.chat))


def _features(recipe: Recipe) -> Features:
    ids = [*ID_COLUMNS[recipe.kind], *(["seq_lengths"] if recipe.packing else [])]
    texts = TEXT_COLUMNS.get(recipe.kind, ())
    return Features({name: List(Value("int32")) for name in ids} | {name: Value("string") for name in texts})


def _sample_text(columns: Columns, chat: Chat) -> str:
    """The row as the model sees it; a pair shows both sides."""
    names = [name for name in columns if name.endswith("_ids")]
    texts = [chat.tokenizer.decode(columns[name])[:SAMPLE_CHARS] for name in names]
    if len(names) == 1:
        return texts[0]
    return "\n".join(f"{name.removesuffix('_ids')}: {text}" for name, text in zip(names, texts, strict=True))


def _check_tally(recipe: Recipe, tally: _Tally) -> None:
    """LauncherError where rows are bad and may not be, where too many are, or where none is left."""
    problems = _bad_row_problems(recipe.where, recipe.bad_rows, tally)
    usable = sum(tally.rows.values())
    if not problems and tally.too_long and not usable:
        longest = ", ".join(str(length) for length in sorted(tally.too_long, reverse=True)[:3])
        what = (
            f"all {len(tally.too_long)} rows are longer than data.max_tokens = {recipe.max_tokens};"
            f" the longest have {longest} tokens"
        )
        enough = sorted(tally.too_long)[(len(tally.too_long) - 1) * 9 // 10]
        hint = f"data.max_tokens: {enough} keeps nine rows in ten"
        problems.append(Problem(code="E537", where=recipe.where, what=what, hint=hint))
    if problems:
        raise LauncherError(problems)


def _bad_row_problems(where: str, bad_rows: Literal["fail", "skip"], tally: _Tally) -> list[Problem]:
    if not tally.bad:
        return []
    shown = [_bad_row_problem(row) for row in tally.bad[:BAD_ROWS_SHOWN]]
    counts = f"{len(tally.bad)} of {tally.seen} rows are bad"
    if bad_rows == "skip":
        if len(tally.bad) <= BAD_SHARE_CAP * tally.seen:
            return []
        what = f"{counts}, more than the {BAD_SHARE_CAP:.0%} that bad_rows: skip may hide"
        return [Problem(code="E535", where=where, what=what, hint="mend the data; the first reasons follow"), *shown[:3]]
    if len(tally.bad) > BAD_ROWS_SHOWN:
        what = f"{counts}; the first {BAD_ROWS_SHOWN} are listed above"
        shown.append(Problem(code="E534", where=where, what=what, hint="mend them, or write data.bad_rows: skip"))
    return shown


def _bad_row_problem(row: BadRow) -> Problem:
    what = f"row {row.place.row}: {row.reason}"
    return Problem(
        code="E534",
        where=row.place.text(),
        what=what,
        hint="mend the row, or skip and count such rows with data.bad_rows: skip",
    )


def _check_counts(recipe: Recipe, manifest: dict[str, object]) -> None:
    rows, dropped = manifest["rows"], manifest["dropped"]
    assert isinstance(rows, dict)
    assert isinstance(dropped, dict)
    unit = f"blocks of {recipe.max_tokens} tokens" if recipe.kind == "pretrain" else "packed rows" if recipe.packing else "rows"
    left_out = f" ({dropped['too_long']} dropped as too long, {dropped['bad']} as bad)" if any(dropped.values()) else ""
    problems = []
    if rows["train"] < recipe.min_rows:
        what = f"{rows['train']} training {unit}{left_out}, but one step uses {recipe.min_rows}"
        hint = f"lower the batch to {max(rows['train'], 1)} or less, or use more data"
        problems.append(Problem(code="E538", where=recipe.where, what=what, hint=hint))
    if rows["held_out"] == 0:
        what = f"no held-out {unit}{left_out} to measure the stage with; {rows['train']} are for training"
        problems.append(Problem(code="E536", where=recipe.where, what=what, hint="raise data.held_out, or use more data"))
    if problems:
        raise LauncherError(problems)
