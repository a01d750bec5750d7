"""JSON with places: the same values as the standard parser, and where everything stands."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.dsconfig.jsontext import parse_json
from launcher.errors import LauncherError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), VALUES), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_values_are_those_of_the_standard_parser(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse_json(text, "ds.json").value == value


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='{}[]":,0123456789.eE+-truefalsn \n\\u/#', max_size=40))
def test_any_text_gives_a_value_or_a_problem_with_a_place(text):
    try:
        parse_json(text, "ds.json")
    except LauncherError as error:
        (problem,) = error.problems
    else:
        assert isinstance(json.loads(text), dict)
        return
    assert problem.code == "E301"
    assert re.fullmatch(r"ds\.json:\d+:\d+", problem.where)


def test_every_key_has_its_line_and_column():
    parsed = parse_json('{"a": 1,\n  "b": {"c": [1, {"d": 2}]}}', "ds.json")
    places = {path: parsed.place(path) for path in [("a",), ("b",), ("b", "c"), ("b", "c", 1, "d"), ("nowhere",)]}
    assert places == {
        ("a",): "ds.json:1:2",
        ("b",): "ds.json:2:3",
        ("b", "c"): "ds.json:2:9",
        ("b", "c", 1, "d"): "ds.json:2:19",
        ("nowhere",): "ds.json:1:1",
    }


def test_a_byte_order_mark_is_no_error():
    assert parse_json('\ufeff{"a": 1}', "ds.json").value == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ds.json:1:1 [E301] the file ends in the middle\n  hint: write plain JSON"),
        ("[1]", "ds.json:1:1 [E301] a DeepSpeed config is one JSON object\n  hint: write plain JSON"),
        ('{"a": 1} x', "ds.json:1:10 [E301] text after the end of the object\n  hint: write plain JSON"),
        ('{"a" 1}', "ds.json:1:6 [E301] `:` is expected here\n  hint: write plain JSON"),
        ('{"a": 1\n "b": 2}', "ds.json:2:2 [E301] `,` is expected here\n  hint: write plain JSON"),
        ('{"a": "b\n"}', "ds.json:1:7 [E301] this text has no end on its line\n  hint: write plain JSON"),
        ('{"a": 1.2.3}', "ds.json:1:7 [E301] 1.2.3 is no JSON value\n  hint: write plain JSON"),
        ('{"a": yes}', "ds.json:1:7 [E301] a value is expected here\n  hint: write plain JSON"),
        (
            '{"a": 1,}',
            "ds.json:1:9 [E301] a key in double quotes is expected here\n"
            "  hint: comments and trailing commas are read by DeepSpeed, not by transformers and accelerate: write plain JSON",
        ),
        (
            '{\n  // ZeRO\n  "a": 1}',
            "ds.json:2:3 [E301] a key in double quotes is expected here\n"
            "  hint: comments and trailing commas are read by DeepSpeed, not by transformers and accelerate: write plain JSON",
        ),
    ],
)
def test_what_is_no_json_is_named_with_its_place(text, message):
    with pytest.raises(LauncherError) as caught:
        parse_json(text, "ds.json")
    assert caught.value.text() == message


def test_a_pit_of_brackets_is_refused_and_does_not_exhaust_the_stack():
    with pytest.raises(LauncherError, match="nested more than 50 levels deep"):
        parse_json('{"a":' + "[" * 100_000, "ds.json")
