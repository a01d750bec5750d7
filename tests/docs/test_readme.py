"""Every command of the README runs here, or is the command that another test runs; every file it shows is the real file."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.spec.load import load_job_text

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
# Minutes long, or this very test run: what `make` would run is checked, and what is named here runs that, by these words.
LONG = {
    "make demo": ("launcher run examples/tiny.yaml", "tests/e2e/test_demo.py", "examples/tiny.yaml"),
    "make test": ("python -m pytest\n", ".ci/run", "\nmake test\n"),
    "make check": ("python -m pytest -q tests/unit tests/arch tests/docs", ".ci/run", "\nmake lint\nmake test\n"),
}
NEEDS_A_RUN = {"launcher generate": "tests/e2e/test_demo.py"}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.S)


def commands() -> Iterator[tuple[str, str]]:
    """(command, the output shown below it)."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def test_the_first_screen_shows_the_real_example() -> None:
    shown = blocks("yaml")[0]
    assert shown == (ROOT / "examples/tiny.yaml").read_text(encoding="utf-8")
    lines = [line for line in shown.splitlines() if not line.startswith("#")]
    assert len(lines) <= 12


def test_the_job_file_that_explains_the_fields_is_valid(tmp_path: Path) -> None:
    model = tmp_path / "Llama-2-7b-hf"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for name in ("pairs.jsonl", "prompts.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a"}\n')
    job = load_job_text(blocks("yaml")[1], file_name="README.md", folder=tmp_path)
    assert [stage.kind for stage in job.stages] == ["sft", "reward", "ppo"]


@pytest.mark.parametrize(("command", "output"), list(commands()), ids=[command for command, _ in commands()])
def test_a_command_of_the_readme_does_what_it_shows(command: str, output: str, tmp_path: Path) -> None:
    if command in LONG:
        wanted, where, words = LONG[command]
        planned = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
        assert wanted in planned.stdout
        assert words in (ROOT / where).read_text(encoding="utf-8")
        return
    words = shlex.split(command)
    assert words[0] == ".venv/bin/launcher"
    for start, where in NEEDS_A_RUN.items():
        if f"launcher {words[1]}" == start:
            assert (ROOT / where).exists()
            return
    argv = [Path(sys.executable).with_name("launcher"), *words[1:]]
    env = {**os.environ, "LAUNCHER_RUNS": str(tmp_path)}  # nothing that was measured on this machine
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60)
    said = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
    missing = [line for line in output.splitlines() if line != "…" and line.rstrip() not in said]
    assert missing == [], "\n".join(said)
