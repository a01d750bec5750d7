"""`launcher doctor JOB` where the job's nodes are started by somebody else's commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli.main import main

BLOCKS = {
    "kubernetes": {"kubernetes": {"image": "none", "claim": "none"}},
    "skypilot": {"cloud": {"image": "none"}},
    "dstack": {"cloud": {"image": "none"}},
}


def job(folder: Path, backend: str, **model: int) -> str:
    block = {"backend": backend, "nodes": 2, "slots": 8, "gpu": "h100-80gb", **BLOCKS[backend]}
    new = {"family": "llama", "layers": 2, "hidden": 64, "heads": 4, "positions": 256, **model}
    stage = {"kind": "pretrain", "data": {"source": "python-docs", "max_tokens": 64}, "steps": 10}
    text = {"name": "job", "model": {"new": new, "tokenizer": {"train": {"vocab": 512}}}, "stages": [stage]}
    path = folder / "job.yaml"
    # Cards that only nodes have: nothing is asked of this machine for them.
    path.write_text(json.dumps({**text, "cluster": {**block, "env": {"NCCL_SOCKET_IFNAME": "ib9"}}}))
    return str(path)


@pytest.mark.parametrize("backend", BLOCKS)
def test_a_job_that_can_be_rendered_is_ready_and_its_nodes_are_not_asked(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", job(tmp_path, backend), "--runs", str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("this machine: ready\n")
    assert err.startswith("the job's nodes are not asked: each looks at itself when it has come")
    assert not (tmp_path / "runs").exists()


def test_a_job_that_has_no_plan_is_not_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = job(tmp_path, "kubernetes", layers=900, hidden=16384)
    assert main(["doctor", path, "--runs", str(tmp_path / "runs")]) == 4
    assert "[E210]" in capsys.readouterr().out
