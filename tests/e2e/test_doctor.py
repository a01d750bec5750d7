"""`launcher doctor` without a job: this machine, and its ranks, started by the real deepspeed, meet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def test_this_machine_is_ready_and_its_ranks_meet(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "launcher", "doctor", "--json", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    [host] = told["hosts"]
    assert host["host"] == "this machine"
    assert not any(problem["stops"] for problem in host["problems"])
    world = told["rendezvous"]["world"]
    assert world >= 1
    assert host["sent_gbs"] is None
    assert (host["inside_gbs"] or 0) > 0 or world == 1
    assert list((tmp_path / "runs").iterdir()) == []
