"""`launcher` on a login host, with two hosts that take one rank each: jobs, and what became of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import launcher
from launcher.rundir.find import find_runs
from launcher.rundir.folder import RunDir
from tests.cluster.world import LOGIN, Cluster

WAIT_S = 400.0
STAGE = {"data": {"source": "python-docs", "max_tokens": 64, "limit": 200}, "eval_rows": 8, "steps": 4, "checkpoint_every": 2}
JOB = {
    "name": "far",
    "seed": 0,
    "model": {
        "new": {"family": "llama", "layers": 1, "hidden": 32, "heads": 2, "ffn": 64, "positions": 128},
        "tokenizer": {"train": {"vocab": 512}},
    },
    "batch": {"global": 8},
}


CHAIN = [
    {**STAGE, "kind": "pretrain"},
    {**STAGE, "kind": "sft"},
    {**STAGE, "kind": "reward", "from": "sft"},
    {**STAGE, "kind": "dpo", "from": "sft"},
    {**STAGE, "kind": "ppo", "from": "sft", "reward": "reward", "steps": 2, "max_new_tokens": 8},
]
HOSTILE = {
    "SHELL_LIKE": "$HOME `id` $(id) \"double\" 'single' \\ ; & | > < * ? [a] {b} ~ !x #y",
    "PDSH_LIKE": "%n %h %u 1,2,3 a=b",
    "LEADING": "-oProxyCommand=id",
    "BLANKS": "  two  blanks  ",
    "ACCENTS": "äöü ✓ 日本",
}
CANARY = "canary-8f3a1c5e7b"


def in_argv(cluster: Cluster, text: str) -> list[str]:
    """Hosts where some process has the text in its command line."""
    script = "grep -lsF -f - /proc/[0-9]*/cmdline || true"  # on stdin: grep is one of those processes
    return [name for name in cluster.names if cluster.out(name, ["sh", "-c", script], stdin=text)]


def in_files(text: str, *folders: Path) -> str:
    """Files with the text in it."""
    argv = ["grep", "-rlF", text, *map(str, folders)]
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout


@dataclass(slots=True)
class Remote:
    """A folder with hosts, a job file and runs/, and the command line as a user of the login host has it."""

    cluster: Cluster
    folder: Path
    runs_name: str = "runs"

    def write_job(self, stages: list[dict[str, object]], *, model: object = JOB["model"], **cluster: object) -> None:
        """job.yaml over ssh on all hosts; `cluster` is added to its cluster block."""
        (self.folder / "hosts").write_text(self.cluster.hostfile())
        block = {"backend": "ssh", "hostfile": "hosts", "python": str(self.python()), **cluster}
        (self.folder / "job.yaml").write_text(json.dumps({**JOB, "model": model, "cluster": block, "stages": stages}))

    def python(self) -> Path:
        """A Python that has this very checkout, wherever the installed one lies."""
        path = self.folder / "python"
        root = Path(launcher.__file__).parent.parent
        path.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return path

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        argv = [str(self.python()), "-m", "launcher", *words]
        env, pipe = {"LAUNCHER_RUNS": self.runs_name, **env}, subprocess.PIPE
        return self.cluster.start(LOGIN, argv, cwd=str(self.folder), env=env, stdout=pipe, stderr=pipe)

    def __call__(self, *words: str, **env: str) -> tuple[int, str, str]:
        """(Exit code, stdout, stderr)."""
        return self.end(self.start(*words, **env))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=WAIT_S)
        return process.returncode, out, err

    def runs(self, name: str = LOGIN) -> Path:
        """The runs folder of a host, as this machine sees it."""
        return self.folder / self.runs_name

    @property
    def run(self) -> RunDir:
        return find_runs(self.runs())[-1]

    @property
    def token(self) -> str:
        """The run folder as the hosts see it."""
        return str(self.folder / self.runs_name / self.run.path.relative_to(self.runs()))

    def events(self, kind: str = "") -> list[dict[str, object]]:
        lines = self.run.events.read_text().splitlines() if self.run.events.exists() else []
        return [event for event in map(json.loads, lines) if event["kind"].startswith(kind)]

    def wait_for(self, what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        """Until `what` holds; an AssertionError with the talk of the process where it ends before."""
        deadline_s = time.monotonic() + WAIT_S
        while not what():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> None:
        """Until pretraining has a finished checkpoint of this step."""
        runs = self.runs("node1")
        self.wait_for(lambda: any(runs.glob(f"*/*/stages/pretrain/checkpoints/step{step}/manifest.json")), process)

    def processes(self, name: str, *, carry: str | None = None) -> list[int]:
        """Processes of a host, by their own number there, that carry this very run (or any text) in their environment."""
        options, wanted = ("-lszxF", f"LAUNCHER_RUN={self.token}") if carry is None else ("-lszF", carry)
        script = 'grep "$1" -- "$2" /proc/[0-9]*/environ | cut -d/ -f3 | grep -v "^$$\\$" || true'
        out = self.cluster.out(name, ["sh", "-c", script, "sh", options, wanted])
        return [int(word) for word in out.split()]

    def rank(self, name: str) -> int:
        """The rank's process in a host."""
        for pid in self.processes(name):
            words = self.cluster.out(name, ["sh", "-c", f"tr '\\0' '\\n' < /proc/{pid}/cmdline || true"]).split("\n")
            if words[1:2] != ["-u"] or "launcher.stages" not in words or "deepspeed.launcher.launch" in words:
                continue
            return pid
        raise AssertionError(f"no rank in {name}")

    def kill(self, name: str, pid: int, number: int = signal.SIGKILL) -> None:
        self.cluster.out(name, ["kill", f"-{int(number)}", str(pid)])

    def left(self) -> dict[str, list[int]]:
        """What is left of the run, by host."""
        return {name: found for name in self.cluster.names if (found := self.processes(name))}

    def losses(self, run: RunDir) -> dict[str, list[dict[str, object]]]:
        """Every figure of every stage but for times."""
        return {path.parent.name: list(_figures(path)) for path in sorted(run.path.glob("stages/*/metrics.jsonl"))}


def _figures(metrics: Path) -> Iterator[dict[str, object]]:
    for line in metrics.read_text().splitlines():
        yield {name: value for name, value in json.loads(line).items() if name not in ("t", "seconds", "tokens_per_s")}


def assert_values_arrived(remote: Remote) -> None:
    """HOSTILE byte by byte, and the secret, at the rank of each node; the secret in no argv of any host and in no file."""
    for name in remote.cluster.nodes:
        found = environ_of(remote.cluster, name, remote.rank(name))
        assert {key: found.get(key) for key in HOSTILE} == HOSTILE
        assert found["WANDB_API_KEY"] == CANARY
    assert in_argv(remote.cluster, CANARY) == []
    assert in_files(CANARY, remote.folder) == ""


def environ_of(cluster: Cluster, name: str, pid: int) -> dict[str, str]:
    """The environment of a process in a host, byte by byte."""
    text = cluster.path(name, f"/proc/{pid}/environ")
    entries = os.fsdecode(text.read_bytes()).split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
