"""What is made from code says what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launcher.cli.docs import doc_texts
from launcher.cli.docs_parallelism import parallelism_text
from launcher.codes import CATALOGUE
from launcher.plan.legality.table import SUBJECTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["docs/errors.md", "docs/cli.md", "docs/parallelism.md", "docs/planner.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == doc_texts(ROOT)[name], "run `make goldens`"


RESULTS = {
    "date": "2026-11-24",
    "deepspeed": "0.19.8",
    "torch": "2.13.0",
    "cases": [
        {
            "name": "tp2-pp2",
            "kind": "sft",
            "family": "llama",
            "dp": 1,
            "tp": 2,
            "pp": 2,
            "sp": 1,
            "zero": 1,
            "precision": "fp32",
            "largest_loss_difference": 9.54e-7,
            "largest_weight_difference": 4.8e-6,
            "seconds": 71.2,
        }
    ],
}


def test_what_was_proved_is_read_from_the_last_matrix(tmp_path: Path) -> None:
    assert "Nothing is on record" in parallelism_text(tmp_path)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "equal_runs.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    text = parallelism_text(tmp_path)
    assert "| tp2-pp2 | sft | llama | 1 x 2 x 2 x 1 | 1 | fp32 | 9.5e-07 | 4.8e-06 | 1 min 11 s |" in text
    assert "`make test-matrix` of 2026-11-24, DeepSpeed 0.19.8, torch 2.13.0." in text


def test_every_rule_of_the_legality_table_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "parallelism.md").read_text(encoding="utf-8")
    missing = [rule.refuses for rules in SUBJECTS.values() for rule in rules if f"| {rule.code} | {rule.refuses} |" not in text]
    assert missing == []


@pytest.mark.parametrize("code", [code for code in CATALOGUE if code[1] in "123"])
def test_every_code_of_job_plan_and_config_is_shown_as_it_is_printed(code: str) -> None:
    """E215 is what `plan --all` says of a candidate; the others come with a hint."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    shown = re.search(rf"^.*\[{code}\].*$(\n  hint: .+)?", text, re.MULTILINE)
    assert shown
    assert shown[1] or code == "E215"


def test_every_code_that_is_raised_is_in_the_catalogue_and_every_code_in_it_is_raised() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "launcher").rglob("*.py") if path.name != "errors.py"}
    used = {code for text in sources.values() for code in re.findall(r'"(E\d{3})"', text)}
    assert used - set(CATALOGUE) <= {"E350"}  # only the border between errors and warnings of lint
    assert set(CATALOGUE) - used == set(), "codes that nothing raises"


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
