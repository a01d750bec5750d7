"""The same command on every node, without a controller: two processes in the place of two pods train one stage together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.backends.shell import end_processes
from launcher.cli.main import main
from launcher.hosts.machine.ports import free_port
from launcher.rundir.artifact import find_damage
from launcher.rundir.folder import RunDir, read_json
from launcher.supervise.create import Planned, write_run
from launcher.supervise.sealed import read_sealed

pytestmark = pytest.mark.e2e

JOB = {
    "name": "joined",
    "seed": 0,
    "model": {
        "new": {"family": "llama", "layers": 1, "hidden": 32, "heads": 2, "ffn": 64, "positions": 128},
        "tokenizer": {"train": {"vocab": 512}},
    },
    "batch": {"global": 8},
    "stages": [
        {"kind": "pretrain", "data": {"source": "python-docs", "max_tokens": 64, "limit": 200}, "steps": 4, "eval_rows": 8}
    ],
}
WAIT_S = 180.0
PORT = free_port()


@pytest.fixture
def run(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A run folder as node 0 writes it from what was rendered, prepared."""
    pods = {"image": "none", "claim": "none", "runs": str(tmp_path), "cpus": 2, "memory_gib": 8, "port": PORT}
    cluster = {"backend": "kubernetes", "nodes": 2, "kubernetes": pods}
    (tmp_path / "job.yaml").write_text(json.dumps({**JOB, "cluster": cluster}))
    assert main(["render", str(tmp_path / "job.yaml"), "-o", str(tmp_path / "rendered-here" / "one")]) == 0
    job, text, plan = read_sealed(tmp_path / "rendered-here" / "one")
    run = RunDir(tmp_path / "joined" / "one")
    write_run(run, Planned(job=job, job_text=text, plan=plan))
    subprocess.run([sys.executable, "-m", "launcher.stages", "prepare", str(run.path)], check=True, timeout=WAIT_S)
    yield run
    end_processes(str(run.path), grace_s=0)


def join(run: RunDir, node: int, *, nodes: int = 2) -> subprocess.Popen[str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_", "LAUNCHER_", "MASTER_"))
    }
    told = {"JOB_COMPLETION_INDEX": str(node), "LAUNCHER_NODES": str(nodes), "LAUNCHER_MASTER": "localhost"}
    argv = [sys.executable, "-P", "-m", "launcher.hosts", "join", str(run.path), "pretrain", str(PORT)]
    env = {**clean, **told, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_nodes_join_one_stage_and_train_it_together(run: RunDir) -> None:
    nodes = [join(run, node) for node in (1, 0)]
    said = [node.communicate(timeout=WAIT_S)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    stage = run.stage("pretrain")
    assert [read_json(stage.done(rank))["world"] for rank in range(2)] == [2, 2]
    assert find_damage(stage.artifact) == []


def test_a_node_too_many_says_so_in_the_run_folder_and_starts_nothing(run: RunDir) -> None:
    node = join(run, 2, nodes=3)
    assert "[E441] Kubernetes has started 3 nodes, the plan is for 2" in node.communicate(timeout=WAIT_S)[1]
    assert node.returncode == 4
    [problem] = read_json(run.stage("pretrain").fleet_problem)["problems"]  # type: ignore[misc]
    assert problem["code"] == "E441"
    assert not run.stage("pretrain").logs.exists()
