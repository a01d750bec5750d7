"""docs/deepspeed-traps.md against the tests, the catalogue of errors and the installed DeepSpeed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from launcher.codes import CATALOGUE
from tests.stages.traps import trap as traps
from tests.stages.traps.trap import FACTS, PAGE, Entry, installed, read_page, trap

ENTRIES = read_page()
FOLDER = Path(__file__).parent
SHOWN = {
    int(number): path.name
    for path in FOLDER.glob("test_*.py")
    for number in re.findall(r"^@trap\((\d+)\)$", path.read_text(encoding="utf-8"), re.MULTILINE)
}


def test_entries_are_numbered_from_1_and_each_has_a_test_and_each_test_an_entry() -> None:
    assert [entry.number for entry in ENTRIES] == list(range(1, len(ENTRIES) + 1))
    assert sorted(SHOWN) == [entry.number for entry in ENTRIES]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.number))
def test_an_entry_says_everything_and_names_its_own_test(entry: Entry) -> None:
    assert [name for name in FACTS if not entry.facts[name]] == []
    assert entry.facts["Test"] == f"`tests/stages/traps/{SHOWN[entry.number]}`"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.number))
def test_a_guard_names_errors_and_modules_that_exist(entry: Entry) -> None:
    guard = entry.facts["Guard"] or ""
    assert [code for code in re.findall(r"\bE\d{3}\b", guard) if code not in CATALOGUE] == []
    modules = re.findall(r"\b((?:plan|train|dsconfig)/\w+)", guard)
    package = PAGE.parents[1] / "launcher"
    assert [name for name in modules if not (package / f"{name}.py").exists() and not (package / name).is_dir()] == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.number))
def test_a_cause_is_a_line_of_the_installed_deepspeed(entry: Entry) -> None:
    if installed() not in (entry.facts["Seen in"] or "").split(", ")[0]:
        pytest.skip("lines are those of the first version it was seen in")
    found = importlib.util.find_spec("deepspeed")
    assert found is not None
    assert found.origin is not None
    for file, line in re.findall(r"`([\w/]+\.py):(\d+)`", entry.facts["Cause"] or ""):
        lines = (Path(found.origin).parent / file).read_text(encoding="utf-8").splitlines()
        assert lines[int(line) - 1].strip(), f"{file}:{line} is empty"


def test_a_trap_that_is_gone_fails_and_names_the_guard_that_can_go() -> None:
    trap(1)(lambda: (0.2, 0.1))()
    with pytest.raises(pytest.fail.Exception, match=r"this trap is gone: remove the guard plan/legality E205.* and entry 1 of"):
        trap(1)(lambda: (0.1, 0.1))()


def test_a_trap_that_is_still_there_in_a_newer_deepspeed_asks_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "installed", lambda: "0.20.1")
    with pytest.raises(AssertionError, match=r"trap 1 is still there in 0\.20\.1: say so in"):
        trap(1)(lambda: (0.2, 0.1))()
