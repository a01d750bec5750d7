"""Text -> plain values: what stays text, what is refused, and how fast."""

from __future__ import annotations

import time

import pytest
import yaml

from launcher.errors import LauncherError
from launcher.spec import yaml_source
from launcher.spec.yaml_source import decode, read_yaml


def read(text: str) -> object:
    return read_yaml(text, "job.yaml").value


def refusal(text: str | bytes) -> str:
    with pytest.raises(LauncherError) as caught:
        read_yaml(decode(text.encode() if isinstance(text, str) else text, "job.yaml"), "job.yaml")
    assert {problem.code for problem in caught.value.problems} == {"E102"}
    return caught.value.text()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *[("1e-5", 1e-5), ("6e-3", 6e-3), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("-1.5e+3", -1500.0), ("0", 0), ("-7", -7)],
        *[("+3", 3), ("0x1F", 31), ("0o17", 15), ("true", True), ("False", False), ("null", None), ("~", None), ("", None)],
        *[
            (text, text)
            for text in ("NO", "no", "on", "Yes", "y", "0777", "12:30:00", "1_000", "2026-11-24", "0b1", "1e", "e5", "-x")
        ],
        *[("'1'", "1"), ('"true"', "true"), ("'~'", "~"), ('"\\t"', "\t"), ("1.0.0", "1.0.0"), ("nan", "nan"), ("inf", "inf")],
    ],
)
def test_plain_scalars_follow_yaml_1_2(written: str, value: object) -> None:
    got = read(f"key: {written}\n")
    assert got == {"key": value}
    assert type(got["key"]) is type(value)  # type: ignore[index]


def test_keys_are_text_whatever_they_look_like() -> None:
    assert read("on: 1\n7: 2\nnull: 3\n") == {"on": 1, "7": 2, "null": 3}


@pytest.mark.parametrize("written", [".nan", ".inf", "-.Inf", "1e999", "-1e400", "9" * 500])
def test_a_number_that_is_not_finite_is_named_with_its_field(written: str) -> None:
    source = read_yaml(f"a:\n  lr: {written}\n", "job.yaml")
    assert [(finding.code, finding.path) for finding in source.findings] == [("E106", ("a", "lr"))]


def test_a_duplicate_key_names_both_lines_and_its_block_is_still_checked() -> None:
    source = read_yaml("a: 1\nb: 2\na: {x: [1, 2]}\n", "job.yaml")
    assert source.value == {"a": 1, "b": 2}
    assert source.findings[0].mark == (3, 1)
    assert "line 1" in source.findings[0].what
    assert "anchor" in refusal("a: 1\na: &x [1]\n")


def test_every_field_has_the_place_of_its_key_and_every_element_its_start() -> None:
    places = read_yaml("model:\n  source: x\nstages:\n  - kind: sft\n  - {kind: dpo}\n", "job.yaml").places
    assert places[("model", "source")] == (2, 3)
    assert places[("stages", 0)] == (4, 5)
    assert places[("stages", 1, "kind")] == (5, 6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("!!python/object/apply:os.system [id]", "job.yaml:1:1 [E102] tag "),
        ("a: !mine 3", "job.yaml:1:4 [E102] tag !mine"),
        ("a: &x 3", "anchor &x"),
        ("a: *x", "alias *x"),
        ("<<: {a: 1}", "merge key"),
        ("a: 1\n---\nb: 2\n", "second document"),
        ("a:\n\tb: 1\n", "job.yaml:2:1 [E102] a tab is used to indent"),
        ("a: [1, 2\nb: 3\n", "not YAML"),
        ("a: b: c\n", "job.yaml:1:5 [E102] not YAML"),
        ("? [a]\n: 3\n", "a key must be a word"),
        ("{a: 1}: 2\n", "a key must be a word"),
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("%YAML 1.3\n---\na: 1\n", "not YAML"),
        (b"\xff\xfea\x00", "UTF-16"),
        (b"\xfe\xff\x00a", "UTF-16"),
        (b"\xef\xbb\xbfa: 1\n", "byte order mark"),
        (b"a: 1\nb: \xff\n", "job.yaml:2:4 [E102] byte 0xff is not UTF-8"),
        ("a: \0", "job.yaml:1:4 [E102] character U+0000"),
        ("a: 1\nb: \x1b[31m", "job.yaml:2:4 [E102] character U+001B"),
        ("a: '" + "x" * yaml_source.MAX_BYTES + "'", "more than 1,048,576 bytes"),
        ("\n".join(f"k{i}: {i}" for i in range(50_000)), "more than 10,000 values"),
        ("- " * 40 + "x", "more than 32 levels"),
    ],
)
def test_what_a_job_file_has_no_use_for_is_refused(text: str | bytes, says: str) -> None:
    assert says in refusal(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{" * 100_000, "- " * 100_000, "{a: " * 100_000, "? " * 100_000, '"' * 100_001]
)
@pytest.mark.parametrize("parser", [yaml.CSafeLoader, yaml.SafeLoader])
def test_deep_nesting_is_refused_at_once_and_without_recursion(
    text: str, parser: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_source, "_PARSER", parser)
    start = time.process_time()
    refusal(text)
    assert time.process_time() - start < 2  # 0.2 s is measured in benchmarks/; this only excludes quadratic time


def test_an_alias_bomb_is_refused_at_its_first_anchor() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "job.yaml:1:4 [E102] anchor &a" in refusal(bomb)


def test_windows_line_ends_are_line_ends() -> None:
    assert read("a: 1\r\nb: two\r\n") == {"a": 1, "b": "two"}
