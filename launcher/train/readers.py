"""One data file -> its columns and rows, strictly. JSONL, JSON, CSV, Parquet, Arrow and text.

Ready-made loaders accept invalid UTF-8, turn a misspelt key into a null and a number into a column of another type, all without
a word. Here every row is checked alone, and a row that cannot be read is a BadRow with its place, never a guess.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from launcher.errors import LauncherError, Problem
from launcher.train.canonical import BadRow, Place

Values = dict[str, object]
RawRow = tuple[Place, Values] | BadRow
COLUMN_ROWS = 100  # rows of a file without a header whose keys are taken for its columns
BATCH_ROWS = 1000
FIELD_BYTES = 2**31 - 1  # longest CSV field; the default of 128 KiB is shorter than many texts


class DuplicateKey(ValueError):
    """The same key twice in one JSON object."""


def read_columns(path: Path) -> list[str]:
    """Column names in the order of the file. LauncherError where the file holds no row or cannot be read."""
    if path.stat().st_size == 0:
        raise LauncherError(_problem("E536", path, "the file is empty", "write rows into it"))
    return _kind(path).columns(path)


def read_rows(path: Path, *, paragraphs: bool = False) -> Iterator[RawRow]:
    """All rows. `paragraphs`: a text document ends at a blank line; else every line of a text file is a row."""
    if path.suffix == ".txt":
        return _paragraphs(path) if paragraphs else _lines(path)
    return _kind(path).rows(path)


class _Jsonl:
    @staticmethod
    def columns(path: Path) -> list[str]:
        return _keys(path, _Jsonl.rows(path))

    @staticmethod
    def rows(path: Path) -> Iterator[RawRow]:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield _object(raw.rstrip(b"\r\n"), Place(str(path), number, number))


class _Json:
    """A list of objects; one object a line under the name .json is read as JSONL."""

    @staticmethod
    def columns(path: Path) -> list[str]:
        return _keys(path, _Json.rows(path))

    @staticmethod
    def rows(path: Path) -> Iterator[RawRow]:
        raw = path.read_bytes()
        if raw.lstrip().startswith(b"{") and isinstance(_parsed(raw.strip().split(b"\n", 1)[0]), dict):
            yield from _Jsonl.rows(path)
            return
        value = _parsed(raw)
        if isinstance(value, str):
            raise LauncherError(_problem("E531", path, value, "write a JSON list of objects, or one object a line as .jsonl"))
        if not isinstance(value, list):
            what = "holds one JSON value, not a list of rows"
            raise LauncherError(_problem("E531", path, what, "write a JSON list of objects, or one object a line as .jsonl"))
        for number, row in enumerate(value, start=1):
            place = Place(str(path), number)
            yield (place, row) if isinstance(row, dict) else BadRow(place, f"is {_json_name(row)}, not an object")


class _Csv:
    @staticmethod
    def columns(path: Path) -> list[str]:
        with _open_csv(path) as file:
            try:
                return next(csv.reader(file, strict=True), [])
            except csv.Error as error:
                raise LauncherError(
                    _problem("E531", path, f"its header cannot be read: {error}", "mend the first line")
                ) from error

    @staticmethod
    def rows(path: Path) -> Iterator[RawRow]:
        csv.field_size_limit(FIELD_BYTES)
        with _open_csv(path) as file:
            reader = csv.reader(file, strict=True)
            header, number = next(reader, []), 0
            while True:
                line = reader.line_num + 1
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    number += 1
                    yield BadRow(Place(str(path), number, line), f"broken CSV: {error}")
                    continue
                if fields is None:
                    return
                if fields:
                    number += 1
                    yield _csv_row(header, fields, Place(str(path), number, line))


class _Parquet:
    @staticmethod
    def columns(path: Path) -> list[str]:
        with _arrow_errors(path), _open_parquet(path) as file:
            return list(file.schema_arrow.names)

    @staticmethod
    def rows(path: Path) -> Iterator[RawRow]:
        with _arrow_errors(path), _open_parquet(path) as file:
            yield from table_rows(str(path), file.iter_batches(batch_size=BATCH_ROWS))


class _Arrow:
    @staticmethod
    def columns(path: Path) -> list[str]:
        with _arrow_errors(path), pyarrow.memory_map(str(path)) as file:
            return list(_open_arrow(file)[0].names)

    @staticmethod
    def rows(path: Path) -> Iterator[RawRow]:
        with _arrow_errors(path), pyarrow.memory_map(str(path)) as file:
            yield from table_rows(str(path), _open_arrow(file)[1])


class _Text:
    @staticmethod
    def columns(path: Path) -> list[str]:
        return ["text"]

    rows = staticmethod(lambda path: _lines(path))


KINDS = {".jsonl": _Jsonl, ".json": _Json, ".csv": _Csv, ".parquet": _Parquet, ".arrow": _Arrow, ".txt": _Text}


def table_rows(name: str, batches: Iterator[pyarrow.RecordBatch | pyarrow.Table]) -> Iterator[RawRow]:
    """Rows of Arrow batches, numbered from 1 over all of them."""
    number = 0
    for batch in batches:
        try:
            rows: list[Values | str] = list(batch.to_pylist())
        except UnicodeDecodeError:  # Arrow does not check the text it is given
            rows = [_one_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
        for row in rows:
            number += 1
            place = Place(name, number)
            yield BadRow(place, row) if isinstance(row, str) else (place, row)


def _kind(path: Path) -> type[_Jsonl | _Json | _Csv | _Parquet | _Arrow | _Text]:
    return KINDS[path.suffix]


def _keys(path: Path, rows: Iterator[RawRow]) -> list[str]:
    seen: dict[str, None] = {}
    first = list(islice(rows, COLUMN_ROWS))
    good = [row[1] for row in first if not isinstance(row, BadRow)]
    if not first:
        raise LauncherError(_problem("E536", path, "the file has no row", "write rows into it"))
    if not good:  # without this it would be told as a file without the needed column
        raise LauncherError(_unreadable(path, [row for row in first if isinstance(row, BadRow)]))
    for values in good:
        seen |= dict.fromkeys(values)
    return list(seen)


def _unreadable(path: Path, bad: list[BadRow]) -> Problem:
    what = f"none of its first {len(bad)} rows can be read; row {bad[0].place.row} {bad[0].reason}"
    hint = "write one JSON object a line, or name the file .txt where it is plain text"
    with path.open("rb") as file:
        if path.suffix == ".jsonl" and file.read(64).lstrip().startswith(b"["):
            hint = "name the file .json where it holds one JSON list of objects; .jsonl is one object a line"
    return _problem("E531", path, what, hint)


def _object(raw: bytes, place: Place) -> RawRow:
    value = _parsed(raw)
    if isinstance(value, dict):
        return place, value
    return BadRow(place, value if isinstance(value, str) else f"is {_json_name(value)}, not an object")


def _parsed(raw: bytes) -> dict[str, object] | list[object] | str | tuple[object]:
    """A JSON object or list, the reason why it is none as text, or another JSON value in a tuple."""
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        return f"is not UTF-8: byte {error.start + 1} is {raw[error.start]:#04x}"
    except json.JSONDecodeError as error:
        return f"broken JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
    except DuplicateKey as error:
        return f"has the key `{error}` twice"
    except RecursionError:
        return "is nested too deeply"
    return value if isinstance(value, dict | list) else (value,)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        raise DuplicateKey(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return values


def _json_name(value: object) -> str:
    value = value[0] if isinstance(value, tuple) else value
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", type(None): "null"}
    return names.get(type(value), "an object")


def _csv_row(header: list[str], fields: list[str], place: Place) -> RawRow:
    if len(fields) != len(header):
        return BadRow(place, f"has {len(fields)} fields, the header has {len(header)}")
    if any("\udc80" <= letter <= "\udcff" for field in fields if not field.isascii() for letter in field):
        return BadRow(place, "is not UTF-8")
    return place, dict(zip(header, fields, strict=True))


def _open_csv(path: Path):
    # surrogateescape keeps undecodable bytes recognisable, so that the row can be named
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    # Without the verification a flipped bit in a page is read as other data in most cases, even where a checksum was written.
    return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)


def _open_arrow(file: pyarrow.NativeFile) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]:
    """Arrow files and Arrow streams share their ending."""
    try:
        reader = pyarrow.ipc.open_file(file)
        return reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))
    except pyarrow.ArrowInvalid:
        file.seek(0)
        stream = pyarrow.ipc.open_stream(file)
        return stream.schema, iter(stream)


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """What Arrow says of a damaged file, as a problem with the file's name."""
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise LauncherError(_problem("E531", path, f"the file is damaged: {reason}", "write or download it again")) from error


def _one_row(batch: pyarrow.RecordBatch | pyarrow.Table) -> Values | str:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"is not UTF-8: {error.reason}"


def _lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield _decoded(raw, Place(str(path), number, number))


def _paragraphs(path: Path) -> Iterator[RawRow]:
    start, lines = 1, []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                start = start if lines else number
                lines.append(raw)
            elif lines:
                yield _decoded(b"".join(lines), Place(str(path), start, start))
                lines = []
    if lines:
        yield _decoded(b"".join(lines), Place(str(path), start, start))


def _decoded(raw: bytes, place: Place) -> RawRow:
    try:
        return place, {"text": raw.decode("utf-8-sig").strip("\r\n")}
    except UnicodeDecodeError as error:
        return BadRow(place, f"is not UTF-8: byte {error.start + 1} is {raw[error.start]:#04x}")


def _problem(code: str, path: Path, what: str, hint: str) -> Problem:
    return Problem(code=code, where=str(path), what=what, hint=hint)
