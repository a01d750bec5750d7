"""Every test here needs a machine that can hold a test cluster; `@pytest.mark.needs("nft", …)` names further programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import launcher
from launcher.rundir.find import find_runs
from launcher.rundir.folder import RunDir
from tests.cluster.needs import missing
from tests.cluster.remote import CHAIN, JOB, WAIT_S
from tests.cluster.world import PATH, Cluster


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture makes hosts."""
    programs = [program for mark in item.iter_markers("needs") for program in mark.args]
    if reason := missing(*programs):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def near(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """CHAIN on one host of two ranks: what every run of it on two hosts has to equal."""
    folder = tmp_path_factory.mktemp("near")
    (folder / "job.yaml").write_text(json.dumps({**JOB, "cluster": {"slots": 2}, "stages": CHAIN}))
    env = {
        "HOME": str(folder),
        "PATH": PATH,
        "PYTHONPATH": str(Path(launcher.__file__).parent.parent),
        "CUDA_VISIBLE_DEVICES": "",
    }
    argv = [sys.executable, "-m", "launcher", "run", "job.yaml", "--runs", "runs"]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    [run] = find_runs(folder / "runs")
    return run


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """node1 and node2, fresh: half a second."""
    with Cluster(hosts=2) as cluster:
        yield cluster
