"""Layers, and what a command may load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "deepspeed", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "huggingface_hub"}
# What a blink cannot afford: each costs several milliseconds and is needed by other commands only.
SLOW = {"asyncio", "email", "http", "multiprocessing", "subprocess", "requests", "unittest"}


def test_the_layers_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(cache_dir=None) == EXIT_STATUS_SUCCESS


def loaded_by(*argv: str) -> set[str]:
    """Top-level modules that are loaded when `launcher argv` ends."""
    script = "import json, sys\nfrom launcher.cli.main import main\ncode = main(sys.argv[1:])\n"
    script += "print('\\n' + json.dumps([code, sorted({name.partition('.')[0] for name in sys.modules})]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    code, names = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(names)


def test_validate_loads_neither_torch_nor_anything_slow() -> None:
    loaded = loaded_by("validate", "examples/tiny.yaml")
    assert not loaded & HEAVY
    assert not loaded & SLOW


@pytest.mark.parametrize(
    "argv",
    [
        ("plan", "examples/tiny.yaml"),
        ("run", "examples/tiny.yaml", "--dry-run"),
        ("schema",),
        ("validate", "--help"),
        *(
            (name, "--help")
            for name in ("status", "logs", "stop", "resume", "report", "generate", "export", "lint", "init", "render", "node")
        ),
    ],
    ids=" ".join,
)
def test_the_control_side_never_loads_torch(argv: tuple[str, ...]) -> None:
    assert not loaded_by(*argv) & (HEAVY - {"huggingface_hub"})


def test_a_command_loads_only_its_own_module() -> None:
    script = "import sys\nfrom launcher.cli.main import main\nmain(['schema'])\n"
    script += "print([name for name in sys.modules if name.startswith('launcher.cli.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "['launcher.cli.common', 'launcher.cli.main', 'launcher.cli.schema']"


def test_every_module_says_what_it_is() -> None:
    without = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "launcher").rglob("*.py")
        if not path.read_text(encoding="utf-8").startswith('"""')
    ]
    assert without == []
