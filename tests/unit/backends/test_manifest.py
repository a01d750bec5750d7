"""Texts in YAML arrive byte by byte, in every reader that there is."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher.backends.manifest import yaml_text

# Plain words that one reader or another takes for something else than a text.
TRAPS = [
    *("on", "No", "y", "N", "null", "~", "012", "0o7", "1e3", "1_000", "12:30:00", ".inf", "nan", "=", "<<", "2026-11-28"),
    *("", " a", "a "),
]
HOSTILE = [
    *("a\nb: c", "--- \n", "a: b", "# no", "- x", "{a: b}", "*alias", "&anchor", "!!python/object", "$(HOME)", "é 日本 😀"),
    "\x85\u2028\ufeff",
]
SURE = ["batch/v1", "registry.example.com:5000/team/image:1.0@sha256:00ff", "/runs/tiny", "ClusterFirst"]


@pytest.mark.parametrize("value", [*TRAPS, *HOSTILE])
def test_a_text_that_readers_disagree_about_is_quoted(value: str) -> None:
    text = yaml_text([{"key": value}])
    assert yaml.safe_load(text) == {"key": value}
    assert text.startswith(('key: "', "key: |"))


@pytest.mark.parametrize("value", SURE)
def test_what_is_surely_a_text_stays_readable(value: str) -> None:
    assert yaml_text([{"key": value}]) == f"key: {value}\n"


@given(st.dictionaries(st.text(), st.recursive(st.text() | st.integers() | st.booleans() | st.none(), st.lists, max_leaves=5)))
def test_whatever_goes_in_comes_out(document: dict[str, object]) -> None:
    assert list(yaml.safe_load_all(yaml_text([document, document], head="a\nb"))) == [document, document]


def test_lines_stay_lines_where_they_can() -> None:
    assert yaml_text([{"job.yaml": "name: a\n\n  b: 1\n"}]) == "job.yaml: |\n  name: a\n\n    b: 1\n"
