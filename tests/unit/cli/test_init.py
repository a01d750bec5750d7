"""`launcher init` and `launcher schema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli.main import main
from launcher.cli.templates import TEMPLATES
from launcher.spec.load import load_job

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_loads_once_its_data_is_there(template: str, tmp_path: Path) -> None:
    assert main(["init", "--template", template, "--name", "mine"]) == 0
    for name in ("pairs.jsonl", "prompts.jsonl"):
        (tmp_path / name).write_text("{}\n", encoding="utf-8")
    job = load_job(tmp_path / "job.yaml")
    assert job.name == "mine"
    text = (tmp_path / "job.yaml").read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=./job.schema.json\n")


def test_the_tiny_template_says_what_the_tiny_example_says() -> None:
    assert main(["init", "--template", "tiny"]) == 0
    assert load_job(Path("job.yaml")) == load_job(EXAMPLES / "tiny.yaml")


def test_nothing_is_asked_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert capsys.readouterr().out == "job.yaml\njob.schema.json\n"


def test_a_person_at_a_terminal_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["sft", "chat"])
    monkeypatch.setattr("launcher.cli.init.on_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda: next(answers))
    assert main(["init"]) == 0
    assert "name: chat\n" in Path("job.yaml").read_text(encoding="utf-8")


def test_nothing_is_written_over_unless_forced() -> None:
    Path("job.yaml").write_text("mine", encoding="utf-8")
    Path("job.schema.json").write_text("mine too", encoding="utf-8")
    assert main(["init"]) == 2
    assert (Path("job.yaml").read_text(), Path("job.schema.json").read_text()) == ("mine", "mine too")
    assert main(["init", "--force"]) == 0
    assert Path("job.yaml").read_text().startswith("# yaml")


def test_a_second_job_beside_the_first_shares_its_schema() -> None:
    assert main(["init", "a.yaml"]) == 0
    assert main(["init", "b.yaml"]) == 0


def test_a_name_that_cannot_be_one_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--name", "My Job"]) == 2
    assert capsys.readouterr().err.startswith("--name [E106] name: ")
    assert not Path("job.yaml").exists()


def test_a_folder_that_cannot_be_written_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("", encoding="utf-8")
    assert main(["init", "file/job.yaml"]) == 2
    assert "[E101]" in capsys.readouterr().err


def test_the_schema_names_every_field_and_takes_auto(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    assert {"const": "auto"} in schema["properties"]["precision"]["anyOf"]
    assert {"const": "auto"} in schema["$defs"]["BatchSpec"]["properties"]["micro"]["anyOf"]
    assert {"const": "auto"} not in schema["$defs"]["BatchSpec"]["properties"]["global"]["anyOf"]
    assert "from" in schema["$defs"]["Sft"]["properties"]
    fields = {f"{block}.{key}": field for block, body in schema["$defs"].items() for key, field in body["properties"].items()}
    assert [name for name, field in fields.items() if "description" not in field and not name.endswith(".kind")] == []
