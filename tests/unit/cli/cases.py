"""tests/golden/errors/NAME.case -> what the command prints. Its first line is the command, below it stands the file it reads.

There is no GPU, and 5 MiB are free on every disk: what is said of a machine is said of this one.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.cli.main import main
from launcher.rundir.folder import write_json
from launcher.supervise.blueprints import blueprint_path
from launcher.units import MIB

GOLDEN = Path(__file__).parents[2] / "golden" / "errors"
BLUEPRINT = GOLDEN.parent / "blueprint_olmo2.json"  # a config, and what the node side makes of it
BAD_HOSTS = "worker-1 slots=8\nworker-1 slots=8\nw0;id slots=1\n-oProxyCommand=id slots=1\nw1 slots=4garbage\nw2 slots=0\nw3\n"
BAD_CALIBRATION = (
    '{"schema": 1, "device": "h100-80gb", "measured": "2026-11-28T10:00:00Z", "ranks": 8, "gpu": {"tflops_16bit": -7},\n'
    ' "links": {}, "constants": {}}\n'
)
BAD_PRICES = "currency: euro\ngpu_hours: {h100-80gb: 2}\ngpu_hour: {a100-80gb: cheap}\noverhead: 0.5\nco2_kg_per_kwh: 0.1\n"


MODELS = {
    "nameless": '{"hidden_size": 768}',
    "damaged": '{"model_type": "llama", "vocab_size": "many", "hidden_size": 64, "num_hidden_layers": -2}',
}


def cases() -> list[Path]:
    return sorted(GOLDEN.glob("*.case"))


def make_folder(folder: Path, file: str, text: str) -> None:
    """The file that a case reads, and what it refers to."""
    (folder / file).write_text(text, encoding="utf-8")
    for name, config in MODELS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config, encoding="utf-8")
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (folder / "notes.md").write_text("text", encoding="utf-8")
    (folder / "void.jsonl").write_text("", encoding="utf-8")
    (folder / "bad_hosts").write_text(BAD_HOSTS, encoding="utf-8")
    (folder / "bad_prices").write_text(BAD_PRICES, encoding="utf-8")
    (folder / "good_hosts").write_text("localhost slots=2\n", encoding="utf-8")
    (folder / "empty").mkdir()
    (folder / "bad_runs" / "calibration").mkdir(parents=True)
    (folder / "bad_runs" / "calibration" / "h100-80gb.json").write_text(BAD_CALIBRATION, encoding="utf-8")
    told = json.loads(BLUEPRINT.read_text(encoding="utf-8"))
    (folder / "olmo2").mkdir()
    (folder / "olmo2" / "config.json").write_text(json.dumps(told["config"]), encoding="utf-8")
    write_json(blueprint_path(folder / "runs", told["config"]), told["blueprint"])
    (folder / "bad_runs" / "calibration" / "scales.json").write_text('{"schema": 1, "scales": [', encoding="utf-8")


@pytest.fixture
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * MIB))


def output_of(case: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """stderr, stdout and exit code, the folder's own name taken out."""
    command, _, text = case.read_text(encoding="utf-8").partition("\n")
    make_folder(folder, "ds.json" if "ds.json" in command.split() else "job.yaml", text)
    before = Path.cwd()
    os.chdir(folder)
    try:
        code = main(shlex.split(command)[2:])
    finally:
        os.chdir(before)
    out, err = capsys.readouterr()
    return f"{err}{out}exit code {code}\n".replace(str(folder), "FOLDER")
