"""What --dry-run prints and render writes works in a plain shell, without this program's supervision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.rundir.artifact import find_damage
from launcher.rundir.folder import RunDir, read_json

pytestmark = pytest.mark.e2e


def test_the_lines_of_a_dry_run_train_the_chain_when_pasted_into_a_shell(launcher):
    runs = launcher.folder / "runs with 'blanks'"
    code, out, err = launcher("run", "job.yaml", "--runs", str(runs), "--dry-run", "--set", "stages.pretrain.steps=4")
    assert code == 0, err
    assert not runs.exists()
    lines = out.splitlines()
    assert len(lines) == 4  # render, prepare, pretrain, sft
    path = Path(sys.executable).parent
    script = "set -e\n" + "\n".join(lines)
    shell = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=launcher.folder,
        env={"PATH": f"{path}:/usr/bin:/bin", "HOME": str(launcher.folder), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert shell.returncode == 0
    [folder] = (runs / "e2e").iterdir()
    for stage in ("pretrain", "sft"):
        done = RunDir(folder).stage(stage)
        assert [read_json(done.done(rank))["world"] for rank in range(2)] == [2, 2]
        assert find_damage(done.artifact) == []
