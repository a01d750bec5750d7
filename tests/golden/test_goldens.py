"""Every file that is made from code is what the code makes now: `make goldens` rewrites them, the diff is reviewed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli.goldens import golden_texts
from launcher.dsconfig.lint import is_warning, lint_config

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))
TEXTS = golden_texts(ROOT)
FOLDERS = ("ds_configs", "tests/golden/plan", "tests/golden/rendered")


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_the_golden_is_there_and_equal_to_the_last_byte(name):
    assert (ROOT / name).read_text(encoding="utf-8") == TEXTS[name]


def test_there_is_no_golden_of_an_example_that_is_gone():
    kept = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}
    assert kept == {name for name in TEXTS if name.startswith(tuple(f"{folder}/" for folder in FOLDERS))}


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_has_a_config_for_every_stage(example):
    plan = json.loads(TEXTS[f"tests/golden/plan/{example}.json"])
    assert {f"ds_configs/{example}/{stage['name']}.json" for stage in plan["stages"]} <= set(TEXTS)


@pytest.mark.parametrize("name", sorted(name for name in TEXTS if name.startswith("ds_configs/")))
def test_what_we_render_has_no_auto_and_pleases_our_own_lint(name):
    assert '"auto"' not in TEXTS[name]
    assert [problem.text() for problem in lint_config(TEXTS[name], file_name=name) if not is_warning(problem)] == []
