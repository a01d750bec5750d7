"""Open MPI: `launcher run` has mpirun start one process on each host, which come together as those of a scheduler do."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.rundir.folder import RunDir, read_json
from tests.cluster.remote import CANARY, CHAIN, HOSTILE, JOB, STAGE, Remote, assert_values_arrived
from tests.cluster.world import Cluster

pytestmark = pytest.mark.needs("mpirun")

LONG = {**STAGE, "kind": "pretrain", "steps": 4000, "checkpoint_every": 20}


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with Cluster(hosts=2, login=True) as cluster:
        yield Remote(cluster, tmp_path, 'it\'s $HOME "runs"')


def write_job(remote: Remote, stages: list[dict[str, object]], **more: object) -> None:
    (remote.folder / "hosts").write_text(remote.cluster.hostfile())
    block = {"backend": "mpi", "hostfile": "hosts", "python": str(remote.python()), **more}
    (remote.folder / "job.yaml").write_text(json.dumps({**JOB, "cluster": block, "stages": stages}))


def test_the_chain_by_mpirun_gives_the_figures_of_one_host(remote: Remote, near: RunDir) -> None:
    write_job(remote, CHAIN)
    code, out, err = remote("run", "job.yaml")
    assert code == 0, err
    run = remote.run
    assert out.splitlines()[0] == str(run.path)
    assert "node 1 of 2, told by Open MPI; node 0 is node1" in err
    assert {read_json(run.stage(str(stage["kind"])).done(rank))["world"] for stage in CHAIN for rank in (0, 1)} == {2}
    assert remote.left() == {}
    assert remote.losses(run) == remote.losses(near)


def test_a_run_has_one_mpirun_and_ctrl_c_stops_all_hosts(remote: Remote) -> None:
    write_job(remote, [LONG], env=HOSTILE, secrets=["WANDB_API_KEY"])
    running = remote.start("run", "job.yaml", WANDB_API_KEY=CANARY)
    remote.wait_for_step(20, running)
    assert_values_arrived(remote)
    code, _, err = remote("resume", remote.run.path.name, WANDB_API_KEY="x")
    assert (code, "[E507] process" in err) == (5, True), err
    running.send_signal(signal.SIGINT)
    code, _, err = remote.end(running)
    assert (code, err.count("stopped; go on with: launcher resume")) == (6, 1), err
    assert "saved step" in err
    assert remote.left() == {}
    assert [event["signal"] for event in remote.events("run.stopped")] == ["stop.json"]
