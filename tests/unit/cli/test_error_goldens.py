"""Whole texts of errors against tests/golden/errors. `make goldens` (GOLDENS=write) rewrites them; review the diff."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from launcher.codes import CATALOGUE
from tests.unit.cli.cases import GOLDEN, cases, one_machine, output_of

__all__ = ["one_machine"]
SHOWN_ELSEWHERE = ("E215",)  # no error: a candidate that `plan --all` names
WRITE = os.environ.get("GOLDENS") == "write"


@pytest.mark.usefixtures("one_machine")
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.stem)
def test_the_text_of_an_error_is_its_golden(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, golden = output_of(case, tmp_path, capsys), case.with_suffix(".txt")
    if WRITE:
        golden.write_text(text, encoding="utf-8")
    assert golden.exists(), f"{golden.name} is missing: run `make goldens` and review it"
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [code for code in CATALOGUE if code[1] in "123" and code not in SHOWN_ELSEWHERE])
def test_every_code_of_job_plan_and_config_has_a_golden_that_shows_it_with_a_hint(code: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in GOLDEN.glob("*.txt")]
    assert any(re.search(rf"\[{code}\] .+\n  hint: .+", text) for text in texts), f"no golden shows {code}"


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.txt")), ids=lambda path: path.stem)
def test_no_golden_holds_a_traceback_a_bug_or_a_control_character(golden: Path) -> None:
    text = golden.read_text(encoding="utf-8")
    assert golden.with_suffix(".case").exists(), "its case is gone"
    assert "Traceback" not in text
    assert "E901" not in text
    assert re.search(r"exit code [2-6]\n$", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
