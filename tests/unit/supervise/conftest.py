"""A run folder, and small real processes that behave as deepspeed's launch.py and its ranks do."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.backends.request import TOKEN, LaunchRequest
from launcher.backends.shell import end_processes
from launcher.rundir.folder import RunDir
from launcher.supervise import watch

# As launch.py: starts the ranks, looks at them, ends the others when one fails, and exits with the first bad code.
LAUNCHER = """
import os, subprocess, sys, time
world, code = int(sys.argv[1]), sys.argv[2]
ranks = [
    subprocess.Popen([sys.executable, "-S", "-c", code], env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    for rank in range(world)
]
alive = list(ranks)
while alive:
    for process in list(alive):
        if process.poll() is None:
            continue
        if process.returncode:
            for other in ranks:
                other.terminate()
            sys.exit(process.returncode)
        alive.remove(process)
    time.sleep(0.4)
"""

# What a rank may call: done(world), tell(code, what), listen(), leave_when_asked(step); rank is its number.
RANK = """
import json, os, signal, sys, time
rank, stage = int(os.environ["RANK"]), os.environ["STAGE_DIR"]
def write(kind, value):
    os.makedirs(f"{stage}/{kind}", exist_ok=True)
    with open(f"{stage}/{kind}/.rank{rank}", "w") as file:
        json.dump(value, file)
    os.rename(f"{stage}/{kind}/.rank{rank}", f"{stage}/{kind}/rank{rank}.json")
def done(world):
    write("done", {"world": world, "t": time.time()})
def listen():
    write("leave", {}) if rank == 0 else None
    os.rename(f"{stage}/leave/rank0.json", f"{stage}/leave/listening.json") if rank == 0 else None
def leave_when_asked(step, world=2):
    while signal.SIGUSR1 not in signal.sigpending():
        time.sleep(0.02)
    write("leave", {"world": world, "step": step})
def tell(code, what):
    write("problems", {"t": time.time(), "problems": [{"code": code, "where": "", "what": what, "hint": "a hint"}]})
"""

MakeRequest = Callable[..., LaunchRequest]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """An empty run folder; whatever was started for it is ended with the test."""
    run = RunDir(tmp_path / "runs" / "job" / "20261124-000000-abcdef")
    run.path.mkdir(parents=True)
    yield run
    end_processes(str(run.path), grace_s=0)


@pytest.fixture
def ranks(run: RunDir) -> MakeRequest:
    """Makes a request for `world` ranks that run `code`; `launcher` replaces what starts them."""

    def make(code: str, *, world: int = 2, launcher: str = LAUNCHER) -> LaunchRequest:
        rank_code = RANK + textwrap.dedent(code)
        argv = (sys.executable, "-S", "-c", textwrap.dedent(launcher), str(world), rank_code)
        env = ((TOKEN, str(run.path)), ("STAGE_DIR", str(run.stage("sft").path)))
        return LaunchRequest(stage="sft", argv=argv, env=env, world=world)

    return make


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch's patience, in tenths of what it is."""
    for name in ("AFTER_DEATH_S", "AFTER_WORD_S", "AFTER_DONE_S", "AFTER_LEFT_S", "TERM_GRACE_S"):
        monkeypatch.setattr(watch, name, 0.5)
    monkeypatch.setattr(watch, "POLL_S", 0.05)
