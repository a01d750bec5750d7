"""A tiny job in a folder of its own, and the real command line on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.backends.shell import Process, end_processes, find_processes
from launcher.rundir.find import find_runs
from launcher.rundir.folder import RunDir

JOB = """
name: e2e
seed: 0
model:
  new: {family: llama, layers: 1, hidden: 32, heads: 2, ffn: 64, positions: 128}
  tokenizer: {train: {vocab: 512}}
batch: {global: 8}
cluster: {slots: 2}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64, limit: 300}, steps: 240, eval_rows: 8, checkpoint_every: 20}
  - {kind: sft, data: {source: python-docs, max_tokens: 64, limit: 300}, steps: 4, eval_rows: 8, checkpoint_every: 2}
"""
WAIT_S = 180.0


@dataclass(slots=True)
class Cli:
    """`launcher` as a user starts it, in a folder with job.yaml and runs/."""

    folder: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("LAUNCHER_", "CUDA_", "MASTER_"))}
        env["CUDA_VISIBLE_DEVICES"] = ""  # two CPU processes everywhere; GPUs have tests of their own (tests/gpu)
        argv = [sys.executable, "-m", "launcher", *words]
        return subprocess.Popen(argv, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """(Exit code, stdout, stderr)."""
        return self.end(self.start(*words))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=WAIT_S)
        return process.returncode, out, err

    @property
    def run(self) -> RunDir:
        return find_runs(self.folder / "runs")[-1]

    def wait_for(self, what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        """Until `what` holds; an AssertionError with the talk of the process where it ends before."""
        deadline_s = time.monotonic() + WAIT_S
        while not what():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    def wait_for_checkpoint(self, step: int, process: subprocess.Popen[str]) -> None:
        """Until pretraining has a finished checkpoint of this step or a later one."""
        pattern = "stages/pretrain/checkpoints/step*/manifest.json"

        def there() -> bool:
            runs = find_runs(self.folder / "runs")
            return bool(runs) and any(int(path.parent.name[4:]) >= step for path in runs[-1].path.glob(pattern))

        self.wait_for(there, process)

    def processes(self) -> dict[str, Process]:
        """ "rank 0", "rank 1", "launch.py" and "deepspeed"."""
        named = {}
        for process in find_processes(str(self.run.path)):
            command = Path(f"/proc/{process.pid}/cmdline").read_text()
            launch = "launch.py" if "deepspeed.launcher.launch" in command else "deepspeed"
            named[launch if process.rank is None else f"rank {process.rank}"] = process
        return named

    def kill(self, name: str) -> None:
        os.kill(self.processes()[name].pid, signal.SIGKILL)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Cli]:
    (tmp_path / "job.yaml").write_text(JOB)
    cli = Cli(tmp_path)
    yield cli
    for run in find_runs(tmp_path / "runs"):
        end_processes(str(run.path), grace_s=0)
