"""Every damage of a data file is named with its place; nothing is guessed."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from launcher.train.canonical import BadRow
from launcher.train.readers import read_columns, read_rows

GOOD = [{"text": f"row {number}"} for number in range(1, 1002)]


def lines_with(row_1000: bytes) -> bytes:
    lines = [json.dumps(row).encode() for row in GOOD]
    lines[999] = row_1000
    return b"\n".join(lines) + b"\n"


@pytest.fixture
def damaged(tmp_path, make_stage, read_stage):
    """The bad rows of a pretraining file whose line 1000 is what is given."""

    def read(row_1000: bytes) -> list[BadRow]:
        path = tmp_path / "data.jsonl"
        path.write_bytes(lines_with(row_1000))
        good, bad = read_stage(make_stage("pretrain", path))
        assert len(good) + len(bad) == 1001
        return bad

    return read


@pytest.mark.parametrize(
    ("row_1000", "reason"),
    [
        (b'{"text": "caf\xe9"}', "is not UTF-8: byte 14 is 0xe9"),
        (b'{"txt": "x"}', "has no `text`; did it mean `txt`?"),
        (b'{"text": 5}', "`text` is a number (5), not text"),
        (b'{"text": null}', "`text` is null"),
        (b'{"text": "a" "b"}', "broken JSON: Expecting ',' delimiter at character 14"),
        (b'{"text": "cut o', "broken JSON: Unterminated string starting at character 10"),
        (b'{"text": "a", "text": "b"}', "has the key `text` twice"),
        (b'["text"]', "is a list, not an object"),
        (b'"text"', "is text, not an object"),
        (b'{"text": "  "}', "`text` is empty"),
        (b'{"text": true}', "`text` is true or false (True), not text"),
        (b'{"text": ["a"]}', "`text` is a list, not text"),
        (b'{"text": "\\ud800"}', "`text` is not valid Unicode: half a surrogate pair at character 1"),
    ],
)
def test_a_damaged_jsonl_row_is_named_with_its_line_and_reason(damaged, tmp_path, row_1000, reason):
    (bad,) = damaged(row_1000)
    assert bad.place.text() == f"{tmp_path}/data.jsonl:1000"
    assert bad.reason == reason


def test_deep_nesting_is_a_bad_row_and_no_crash(damaged):
    (bad,) = damaged(b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    assert "nested too deeply" in bad.reason


def test_an_empty_file_is_refused_by_name(tmp_path, problems_of):
    path = tmp_path / "empty.jsonl"
    path.touch()
    (problem,) = problems_of(read_columns, path)
    assert (problem.code, problem.where) == ("E536", str(path))


def test_a_file_of_blank_lines_has_no_row(tmp_path, problems_of):
    path = tmp_path / "blank.jsonl"
    path.write_text("\n \n\n")
    assert problems_of(read_columns, path)[0].what == "the file has no row"


@pytest.mark.parametrize(
    ("text", "reason", "hint"),
    [
        ("hello\nworld\n", "row 1 broken JSON", "one JSON object a line"),
        ('[\n {\n  "text": "a"\n }\n]\n', "row 1 broken JSON", "name the file .json"),
        ("3\n4\n", "row 1 is a number", "one JSON object a line"),
    ],
)
def test_a_file_without_one_readable_row_is_told_so_and_not_that_a_column_is_missing(tmp_path, problems_of, text, reason, hint):
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    (problem,) = problems_of(read_columns, path)
    assert (problem.code, problem.where) == ("E531", str(path))
    assert reason in problem.what
    assert hint in problem.hint


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert read_columns(path) == ["text"]


def test_json_may_be_a_list_or_one_object_a_line(tmp_path):
    listed, lined = tmp_path / "list.json", tmp_path / "lines.json"
    listed.write_text('[{"text": "a"}, {"text": "b"}, 3]')
    lined.write_text('{"text": "a"}\n{"text": "b"}\n')
    rows = list(read_rows(listed))
    assert [row[1] for row in rows[:2]] == [{"text": "a"}, {"text": "b"}]
    assert rows[2].reason == "is a number, not an object"
    assert [row[1] for row in read_rows(lined)] == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("text", ['{\n"data": [{"text": "a"}]\n}', "[1, 2", "nothing"])
def test_json_that_is_no_list_of_rows_is_refused(tmp_path, problems_of, text):
    path = tmp_path / "data.json"
    path.write_text(text)
    assert problems_of(read_columns, path)[0].code == "E531"


def test_csv_rows_are_counted_without_the_header_and_placed_by_line(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b'prompt,completion\n"two\nlines",b\nonly one\nc,\xff\nlast,d\n')
    first, second, third, last = read_rows(path)
    assert first[1] == {"prompt": "two\nlines", "completion": "b"}
    assert (second.place.row, second.place.line, second.reason) == (2, 4, "has 1 fields, the header has 2")
    assert third.reason == "is not UTF-8"
    assert (last[0].row, last[0].line, last[1]["completion"]) == (4, 6, "d")


def test_a_csv_field_may_be_longer_than_the_default_limit(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text\n" + "x" * 300_000 + "\n")
    ((_, values),) = read_rows(path)
    assert len(values["text"]) == 300_000


def test_parquet_and_arrow_give_the_rows_that_were_written(tmp_path):
    table = pyarrow.table({"text": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    with pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("data.parquet", "file.arrow", "stream.arrow"):
        assert read_columns(tmp_path / name) == ["text"]
        assert [row[1] for row in read_rows(tmp_path / name)] == [{"text": "a"}, {"text": "b"}]


def test_a_flipped_bit_in_a_parquet_page_is_found_where_a_checksum_was_written(tmp_path, problems_of):
    path = tmp_path / "data.parquet"
    rows = pyarrow.table({"text": [f"some text number {number}" for number in range(500)]})
    pyarrow.parquet.write_table(rows, path, write_page_checksum=True, use_dictionary=False, compression="none")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(bytes(raw))
    (problem,) = problems_of(lambda: list(read_rows(path)))
    assert (problem.code, problem.where) == ("E531", str(path))


def test_a_file_that_is_no_parquet_is_damaged(tmp_path, problems_of):
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 but not really")
    assert problems_of(read_columns, path)[0].code == "E531"


def test_invalid_utf8_inside_parquet_is_a_bad_row(tmp_path):
    path = tmp_path / "data.parquet"
    texts = pyarrow.array([b"good", b"\xff", b"fine"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    first, second, third = read_rows(path)
    assert (first[1], third[1]) == ({"text": "good"}, {"text": "fine"})
    assert (second.place.text(), second.reason[:12]) == (f"{path} row 2", "is not UTF-8")


def test_a_text_file_has_a_row_a_line_or_a_document_a_paragraph(tmp_path):
    path = tmp_path / "data.txt"
    path.write_bytes(b"one\ntwo\n\n\nthree\nfo\xffur\n\nfive")
    assert [row[1]["text"] for row in read_rows(path) if not isinstance(row, BadRow)] == ["one", "two", "three", "five"]
    first, second, last = read_rows(path, paragraphs=True)
    assert first[1]["text"] == "one\ntwo"
    assert (second.place.line, second.reason) == (5, "is not UTF-8: byte 9 is 0xff")
    assert last[1]["text"] == "five"
