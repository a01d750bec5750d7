"""The data of a stage as the job names it -> canonical rows, each on its side of the held-out split. DO: files and hub.

What is wrong with the data as a whole (absent, empty, columns, shape) is raised when the source is opened; what is wrong with a
row comes out as a BadRow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import datasets
import pyarrow
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from launcher.errors import LauncherError, Problem
from launcher.rundir.artifact import sha256_file
from launcher.spec.data import DataSource
from launcher.spec.stages import Kind, Sft, StageBase
from launcher.train import shapes
from launcher.train.canonical import BadRow, Row, Side, share
from launcher.train.files import data_files
from launcher.train.layout import Layout, layout_of, missing_columns
from launcher.train.readers import BATCH_ROWS, RawRow, read_columns, read_rows, table_rows

DEFAULT_HELD_OUT = 0.05


class Table(Protocol):
    """Rows with columns, wherever they lie. `name` is short, for errors; `place` is unique."""

    name: str
    place: str

    def columns(self) -> list[str]: ...

    def fingerprint(self) -> str: ...

    def rows(self) -> Iterator[RawRow]: ...


class FileTable:
    """One local file."""

    def __init__(self, path: Path, *, paragraphs: bool):
        self.path, self.name, self.place, self.paragraphs = path, path.name, str(path), paragraphs
        self.seen: tuple[int, int] | None = None

    def columns(self) -> list[str]:
        return read_columns(self.path)

    def fingerprint(self) -> str:
        """Content only: a touched file is the same, an edited one of the same size is not."""
        self.seen = self._stamp()
        return f"{self.seen[0]} {sha256_file(self.path)} {self.paragraphs}"

    def rows(self) -> Iterator[RawRow]:
        yield from read_rows(self.path, paragraphs=self.paragraphs)
        if self.seen is not None and self._stamp() != self.seen:
            what = "the file was changed while it was read"
            raise LauncherError(Problem(code="E531", where=str(self.path), what=what, hint="start again once it is written"))

    def _stamp(self) -> tuple[int, int]:
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns


class HubTable:
    """One split of a dataset that `datasets` has loaded, read as Arrow so that nothing is decoded."""

    def __init__(self, dataset: datasets.Dataset, name: str):
        self.dataset, self.name, self.place = dataset, name, name

    def columns(self) -> list[str]:
        return list(self.dataset.column_names)

    def fingerprint(self) -> str:
        return f"{self.dataset._fingerprint} {self.dataset.num_rows}"

    def rows(self) -> Iterator[RawRow]:
        batches: Iterator[pyarrow.Table] = self.dataset.with_format("arrow").iter(batch_size=BATCH_ROWS)
        yield from table_rows(self.name, batches)


class FileRows:
    """RowSource of one stage. LauncherError where the data cannot be found or their columns do not fit."""

    def __init__(self, stage: StageBase):
        self.kind: Kind = stage.kind
        self.data, self.where = stage.data, f"stage {stage.stage_name}"
        self.tables = _tables(self.data.source, self.data.split, self.data.config, self.kind, self.where)
        held_out = self.data.held_out
        self.held_out = self._second(held_out) if isinstance(held_out, DataSource) else None
        self.fraction = held_out if isinstance(held_out, float) else DEFAULT_HELD_OUT
        self.layout = self._layout(loss_on_all=isinstance(stage, Sft) and stage.loss_on == "all")

    def fingerprint(self) -> str:
        parts = [shapes.FORMAT, self.kind, self.layout.shape, dict(self.layout.columns), self.data.limit]
        split = self.fraction if self.held_out is None else [table.fingerprint() for table in self.held_out]
        text = json.dumps([*parts, split, [table.fingerprint() for table in self.tables]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def rows(self) -> Iterator[tuple[Side, Row] | BadRow]:
        main = islice(self._made(self.tables), self.data.limit)
        if self.held_out is None:
            yield from split_by_hash(main, self.fraction)
            return
        yield from _on_side("train", main)
        yield from _on_side("held_out", self._made(self.held_out))

    def _made(self, tables: Sequence[Table]) -> Iterator[Row | BadRow]:
        for raw in chain.from_iterable(table.rows() for table in tables):
            yield raw if isinstance(raw, BadRow) else shapes.make_row(self.kind, self.layout, *raw)

    def _second(self, held_out: DataSource) -> list[Table]:
        source = held_out.source or self.data.source
        tables = _tables(source, held_out.split, self.data.config, self.kind, f"{self.where}, held_out")
        if {table.place for table in tables} & {table.place for table in self.tables}:
            what = "data.held_out is training data: a model would be measured on what it has learned by heart"
            raise LauncherError(
                Problem(code="E536", where=self.where, what=what, hint="name another file or split, or a fraction")
            )
        return tables

    def _layout(self, *, loss_on_all: bool) -> Layout:
        first, *others = [*self.tables, *(self.held_out or [])]
        layout = layout_of(self.kind, self.data, first.columns(), loss_on_all=loss_on_all, where=self.where, file=first.name)
        problems = []
        for table in others:
            problems += missing_columns(layout, table.columns(), where=self.where, file=table.name)
        if problems:
            raise LauncherError(problems)
        return layout


def split_by_hash(rows: Iterator[Row | BadRow], fraction: float) -> Iterator[tuple[Side, Row] | BadRow]:
    """Each row on the side that the hash of its prompt gives it. Of few rows at least the one with the smallest hash is
    held out: until a first row is held out, the smallest so far waits."""
    waiting: tuple[float, Row] | None = None
    any_held_out, num_rows = False, 0
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        num_rows += 1
        drawn = share(row.key())
        if drawn < fraction:
            any_held_out = True
            yield "held_out", row
        elif any_held_out:
            yield "train", row
        elif waiting is None:
            waiting = drawn, row
        else:
            kept, passed = ((drawn, row), waiting) if drawn < waiting[0] else (waiting, (drawn, row))
            waiting = kept
            yield "train", passed[1]
        if any_held_out and waiting is not None:
            yield "train", waiting[1]
            waiting = None
    if waiting is not None:
        yield ("held_out" if num_rows > 1 else "train"), waiting[1]


def _on_side(side: Side, rows: Iterator[Row | BadRow]) -> Iterator[tuple[Side, Row] | BadRow]:
    for row in rows:
        yield row if isinstance(row, BadRow) else (side, row)


def _tables(source: str, split: str, config: str | None, kind: Kind, where: str) -> list[Table]:
    path = Path(source)
    if not path.is_absolute() and not path.exists():
        return [_hub_table(source, split, config, where)]
    if config is not None:
        what = f"data.config is for hub datasets, and {source} is a local {'folder' if path.is_dir() else 'file'}"
        raise LauncherError(Problem(code="E539", where=where, what=what, hint="remove data.config"))
    files = data_files(path, split, where)
    return [FileTable(file, paragraphs=kind == "pretrain") for file in files]


def _hub_table(source: str, split: str, config: str | None, where: str) -> Table:
    """Dataset scripts do not run: `datasets` refuses them. Only what the hub says is wrong is caught here."""
    try:
        dataset = datasets.load_dataset(source, config, split=split)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        hint = "check the id, the network and the access rights (HF_TOKEN), or use a local file"
        raise LauncherError(
            Problem(code="E547", where=where, what=f"{source} cannot be fetched: {_first_line(error)}", hint=hint)
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        hint = "check data.config and data.split; a dataset with a loading script must be converted to Parquet first"
        raise LauncherError(
            Problem(code="E530", where=where, what=f"{source}, split {split}: {_first_line(error)}", hint=hint)
        ) from error
    if dataset.num_rows == 0:
        raise LauncherError(
            Problem(code="E536", where=where, what=f"{source}, split {split} has no row", hint="use another split")
        )
    return HubTable(dataset, f"{source}/{split}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
