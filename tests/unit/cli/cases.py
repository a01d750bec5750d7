"""tests/golden/errors/NAME.case -> what the command prints. Its first line is the command, below it stands job.yaml."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from launcher.cli.main import main

GOLDEN = Path(__file__).parents[2] / "golden" / "errors"
BAD_HOSTS = "worker-1 slots=8\nworker-1 slots=8\nw0;id slots=1\n-oProxyCommand=id slots=1\nw1 slots=4garbage\nw2 slots=0\nw3\n"
BAD_PRICES = "currency: euro\ngpu_hours: {h100-80gb: 2}\ngpu_hour: {a100-80gb: cheap}\noverhead: 0.5\nco2_kg_per_kwh: 0.1\n"


def cases() -> list[Path]:
    return sorted(GOLDEN.glob("*.case"))


def make_folder(folder: Path, job: str) -> None:
    """What the cases refer to."""
    (folder / "job.yaml").write_text(job, encoding="utf-8")
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (folder / "notes.md").write_text("text", encoding="utf-8")
    (folder / "void.jsonl").write_text("", encoding="utf-8")
    (folder / "bad_hosts").write_text(BAD_HOSTS, encoding="utf-8")
    (folder / "bad_prices").write_text(BAD_PRICES, encoding="utf-8")
    (folder / "good_hosts").write_text("localhost slots=2\n", encoding="utf-8")
    (folder / "empty").mkdir()


def output_of(case: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """stderr, stdout and exit code, the folder's own name taken out."""
    command, _, job = case.read_text(encoding="utf-8").partition("\n")
    make_folder(folder, job)
    before = Path.cwd()
    os.chdir(folder)
    try:
        code = main(shlex.split(command)[2:])
    finally:
        os.chdir(before)
    out, err = capsys.readouterr()
    return f"{err}{out}exit code {code}\n".replace(str(folder), "FOLDER")
