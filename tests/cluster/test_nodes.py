"""Nodes that a scheduler starts, all with the one command that `launcher render` wrote: two hosts in the place of two pods.

Nobody logs in to anybody. What pods share is the volume; here it is this machine's disk.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import launcher
from launcher.cli.main import main
from launcher.hosts.nodes import board
from launcher.rundir.artifact import find_damage
from launcher.rundir.folder import RunDir, read_json, write_json
from tests.cluster.needs import SLURM
from tests.cluster.remote import CANARY, HOSTILE, environ_of, in_argv, in_files
from tests.cluster.slurm import slurm
from tests.cluster.world import Cluster

WAIT_S = 400.0
DATA = {"source": "python-docs", "max_tokens": 64, "limit": 200}
STAGE = {"data": DATA, "eval_rows": 8, "steps": 4, "checkpoint_every": 2}
HERE = {"HOME": "/root", "PYTHONPATH": str(Path(launcher.__file__).parent.parent), "CUDA_VISIBLE_DEVICES": ""}
JOB = {
    "name": "pods",
    "seed": 0,
    "model": {
        "new": {"family": "llama", "layers": 1, "hidden": 32, "heads": 2, "ffn": 64, "positions": 128},
        "tokenizer": {"train": {"vocab": 512}},
    },
    "batch": {"global": 8},
    "stages": [{**STAGE, "kind": "pretrain"}, {**STAGE, "kind": "sft"}],
}


@dataclass(slots=True)
class Pods:
    """What was rendered, and hosts that play pods: node1 is pod 0."""

    cluster: Cluster
    folder: Path
    running: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        """What was rendered; its last name is that of the run."""
        return self.folder / "it's $(id) ✓" / "one"

    def render(self, *, env: dict[str, str] | None = None, **changes: object) -> None:
        kubernetes = {"image": "none", "claim": "none", "runs": str(self.folder / "runs"), "cpus": 2, "memory_gib": 8}
        block = {"backend": "kubernetes", "nodes": 2, "slots": 1, "kubernetes": kubernetes, "env": env or {}}
        job = self.folder / "job.yaml"
        job.write_text(json.dumps({**JOB, "cluster": block, **changes}))
        assert main(["render", str(job), "-o", str(self.source)]) == 0

    def container(self) -> dict:
        manifests = yaml.safe_load_all((self.source / "rendered" / "kubernetes" / "job.yaml").read_text())
        job = next(one for one in manifests if one["kind"] == "JobSet")["spec"]["replicatedJobs"][0]["template"]["spec"]
        [container] = job["template"]["spec"]["containers"]
        return container

    def command(self) -> list[str]:
        """The container's, with this Python and what was rendered where it lies here."""
        command = [str(self.source) if word == "/etc/launcher" else word for word in self.container()["command"]]
        return [sys.executable, *command[1:]]

    def start(self, pod: int, **environ: str) -> None:
        """The container's command, with what Kubernetes and the manifest put into its environment."""
        env = {one["name"]: one["value"] for one in self.container()["env"]}
        env |= {**HERE, "LAUNCHER_MASTER": "node1", "JOB_COMPLETION_INDEX": str(pod), **environ}
        where, pipe = f"node{pod + 1}", subprocess.PIPE
        self.running[pod] = self.cluster.start(where, self.command(), env=env, cwd=str(self.folder), stdout=pipe, stderr=pipe)

    def end(self, pod: int) -> tuple[int, str]:
        """Exit code, stderr."""
        process = self.running.pop(pod)
        _, err = process.communicate(timeout=WAIT_S)
        return process.returncode, err

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / "runs" / "pods" / "one")

    def events(self, kind: str) -> list[dict]:
        lines = self.run.events.read_text().splitlines() if self.run.events.exists() else []
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < deadline_s
            for pod, process in self.running.items():
                assert process.poll() is None, (pod, process.communicate())
            time.sleep(0.05)

    def rank(self, pod: int) -> int:
        """Its process, as the host numbers it."""
        name, script = f"node{pod + 1}", f"grep -lsz -- RANK={pod} /proc/[0-9]*/environ | cut -d/ -f3"
        for pid in self.cluster.out(name, ["sh", "-c", script]).split():
            words = self.cluster.out(name, ["sh", "-c", f"tr '\\0' '\\n' < /proc/{pid}/cmdline || true"]).split("\n")
            if "launcher.stages" in words and "deepspeed.launcher.launch" not in words:
                return int(pid)
        raise AssertionError("no rank")

    def left(self) -> str:
        script = "grep -lsz LAUNCHER_RUN= /proc/[0-9]*/environ || true"
        return "".join(self.cluster.out(name, ["sh", "-c", script]) for name in self.cluster.nodes)


@pytest.fixture
def pods(tmp_path: Path, cluster: Cluster) -> Pods:
    return Pods(cluster, tmp_path)


def test_two_pods_train_the_chain_together(pods: Pods) -> None:
    pods.render()
    pods.start(1)
    pods.start(0)
    codes = {pod: pods.end(pod) for pod in (0, 1)}
    assert [code for code, _ in codes.values()] == [0, 0], codes
    for stage in ("pretrain", "sft"):
        folder = pods.run.stage(stage)
        assert [read_json(folder.done(rank))["world"] for rank in range(2)] == [2, 2]
        assert find_damage(folder.artifact) == []
    assert pods.left() == ""
    pods.start(0)
    pods.start(1)
    assert [pods.end(pod)[0] for pod in (0, 1)] == [0, 0]
    assert [event["stage"] for event in pods.events("stage.kept")] == ["pretrain", "sft"]


def test_a_rank_that_dies_ends_all_pods_and_the_next_attempt_goes_on_from_a_checkpoint(pods: Pods) -> None:
    pods.render(stages=[{**STAGE, "kind": "pretrain", "steps": 60, "checkpoint_every": 10}])
    pods.start(0)
    pods.start(1)
    pods.wait_for(lambda: any(pods.run.stage("pretrain").checkpoints.glob("step*/manifest.json")))
    pods.cluster.out("node2", ["kill", f"-{int(signal.SIGKILL)}", str(pods.rank(1))])
    first, second = pods.end(0), pods.end(1)
    assert (first[0], second[0]) == (5, 5)
    assert "stage pretrain, rank 1 [E501] killed by SIGKILL" in first[1]
    assert pods.left() == ""
    pods.start(1)
    pods.start(0)
    assert [pods.end(pod)[0] for pod in (0, 1)] == [0, 0]
    assert "resumed from step" in pods.run.stage("pretrain").rank_log(0).read_text()


@pytest.mark.parametrize("told", [(0, 1), (1,)], ids=["all pods are deleted", "one machine is drained"])
def test_pods_that_are_stopped_save_together_and_the_next_attempt_goes_on_from_that_step(
    pods: Pods, told: tuple[int, ...]
) -> None:
    pods.render(stages=[{**STAGE, "kind": "pretrain", "steps": 60, "checkpoint_every": 10}])
    pods.start(0)
    pods.start(1)
    pods.wait_for(lambda: any(pods.run.stage("pretrain").checkpoints.glob("step*/manifest.json")))
    for pod in told:
        pods.cluster.out(f"node{pod + 1}", ["pkill", "-TERM", "-f", "--", "[-]m launcher node"])
    ended = {pod: pods.end(pod) for pod in (0, 1)}
    assert [code for code, _ in ended.values()] == [6, 6], ended
    [left] = pods.events("stage.left")
    assert f"saved step {left['step']}, stopped" in ended[0][1]
    assert pods.left() == ""
    pods.start(1)
    pods.start(0)
    assert [pods.end(pod)[0] for pod in (0, 1)] == [0, 0]
    assert f"resumed from step {left['step']}" in pods.run.stage("pretrain").rank_log(0).read_text()


def test_a_pod_that_vanishes_is_named_and_the_others_end(pods: Pods) -> None:
    pods.render(stages=[{**STAGE, "kind": "pretrain", "steps": 4000, "checkpoint_every": 10}])
    pods.start(0)
    pods.start(1)
    pods.wait_for(lambda: any(pods.run.stage("pretrain").checkpoints.glob("step*/manifest.json")))
    pods.cluster.crash("node2")
    code, err = pods.end(0)
    assert code == 5, err
    assert "node 1 (node2) [E520]" in err


def test_another_number_of_pods_than_planned_is_refused(pods: Pods) -> None:
    pods.render()
    pods.start(0, LAUNCHER_NODES="1")
    code, err = pods.end(0)
    assert code == 4
    assert "node 0 [E441] Kubernetes has started 1 node, the plan is for 2" in err


def test_a_first_pod_that_takes_no_part_sends_the_others_home(pods: Pods) -> None:
    pods.render()
    write_json(
        pods.run.path / "controller.json", {"pid": 7, "started_ticks": 1, "host": "lost", "boot": "x"}
    )  # of a lost machine
    pods.start(1)
    pods.wait_for(lambda: board.read_card(pods.run, 1))
    sealed = pods.source / "rendered" / "planned.json"
    sealed.write_text(sealed.read_text().replace(launcher.__version__, "0.0.9"))  # of an image of another version
    pods.start(0)
    (first, told), (second, _) = pods.end(0), pods.end(1)
    assert (first, second) == (4, 4)
    assert "E420" in told


def test_a_pod_with_another_version_of_a_package_is_refused_before_anything_trains(pods: Pods) -> None:
    """ZeRO-1 of two versions trains to the end, exits with 0 and says nothing."""
    metadata = pods.folder / "other" / "deepspeed-0.17.6.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Name: deepspeed\nVersion: 0.17.6\n")
    pods.render()
    pods.start(1, PYTHONPATH=f"{pods.folder / 'other'}:{HERE['PYTHONPATH']}")
    pods.start(0)
    ended = {pod: pods.end(pod) for pod in (0, 1)}
    assert [code for code, _ in ended.values()] == [4, 4], ended
    assert f"node 1 (node2) [E425] deepspeed 0.17.6, usual is {version('deepspeed')}" in ended[0][1]
    assert f"pip install deepspeed=={version('deepspeed')}" in ended[0][1]
    status = [sys.executable, "-m", "launcher", "status", "--json", str(pods.run.path)]
    told = subprocess.run(status, env={**os.environ, **HERE}, capture_output=True, text=True, check=False).stdout
    assert "deepspeed 0.17.6" in told
    assert not any(pods.run.stage("pretrain").path.glob("metrics*"))
    assert pods.left() == ""


def test_a_pod_that_lacks_memory_refuses_itself_and_is_named(pods: Pods) -> None:
    """What `doctor` asks of a host, the node asks of itself."""
    pods.render()
    pods.cluster.overlay("node2", "/proc/meminfo", _little_memory(pods.folder))
    pods.start(1)
    pods.wait_for(lambda: board.read_card(pods.run, 1))  # before node 0 has made the run folder
    pods.start(0)
    ended = {pod: pods.end(pod) for pod in (0, 1)}
    assert [code for code, _ in ended.values()] == [4, 4], ended
    assert "node 1, host memory [E409]" in ended[0][1]
    assert "node 1, host memory [E409]" in ended[1][1]


def test_a_port_that_the_manifest_names_and_somebody_holds_is_told_once(pods: Pods) -> None:
    pods.render()
    listens = "import socket, time; held = socket.create_server(('', 29500)); print(flush=True); time.sleep(600)"
    holder = pods.cluster.start("node1", [sys.executable, "-c", listens], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "\n"
    pods.start(1)
    pods.start(0)
    ended = {pod: pods.end(pod) for pod in (0, 1)}
    assert [code for code, _ in ended.values()] == [4, 4], ended
    assert re.search(r"node1, port 29500 \[E406\] .*, by process \d+ \(python", ended[0][1]), ended
    assert len(pods.events("stage.launched")) == 1


def _little_memory(folder: Path) -> Path:
    """A file as the kernel's, with next to nothing free."""
    told = Path("/proc/meminfo").read_text()
    (folder / "meminfo").write_text(re.sub(r"MemAvailable: +\d+ kB", "MemAvailable: 1024 kB", told))
    return folder / "meminfo"


@pytest.mark.needs(*SLURM)
def test_srun_starts_the_same_command_and_slurm_tells_the_places(pods: Pods) -> None:
    """With every value as it is at both ranks, and a secret in no command line and in no file."""
    pods.render(stages=[{**STAGE, "kind": "pretrain"}], env=HOSTILE)
    argv = ["srun", "--nodes=2", "--ntasks-per-node=1", *pods.command()]
    env, pipe = {**HERE, "WANDB_API_KEY": CANARY}, subprocess.PIPE
    seen: dict[int, dict[str, str]] = {}
    with slurm(pods.cluster):
        running = pods.cluster.start("node1", argv, env=env, cwd=str(pods.folder), stdout=pipe, stderr=pipe)
        pods.running[0] = running
        while len(seen) < 2:
            assert in_argv(pods.cluster, CANARY) == []
            with suppress(AssertionError):
                seen = {pod: environ_of(pods.cluster, f"node{pod + 1}", pods.rank(pod)) for pod in (0, 1)}
            assert running.poll() is None, running.communicate()
        code, err = pods.end(0)
    for found in seen.values():
        assert {key: found.get(key) for key in HOSTILE} == HOSTILE
        assert found["WANDB_API_KEY"] == CANARY
    assert (code, "node 1 of 2, told by SLURM; node 0 is node1" in err) == (0, True), err
    assert CANARY not in err
    assert in_files(CANARY, pods.folder, pods.cluster.folder) == ""
    assert [read_json(pods.run.stage("pretrain").done(rank))["world"] for rank in range(2)] == [2, 2]
