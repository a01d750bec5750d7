"""Real SLURM: `launcher run` gives a job to the queue and sees it to its end, over a requeue, a lost node and a stop."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.rundir.find import find_run
from launcher.rundir.folder import RunDir, read_json
from tests.cluster import accounts
from tests.cluster.needs import SLURM
from tests.cluster.remote import CANARY, CHAIN, HOSTILE, JOB, STAGE, Remote, assert_values_arrived, in_files
from tests.cluster.slurm import Slurm, slurm
from tests.cluster.world import LOGIN, Cluster

pytestmark = pytest.mark.needs(*SLURM, "sbatch", "squeue")

LONG = {**STAGE, "kind": "pretrain", "steps": 4000, "checkpoint_every": 20}
ODD_FOLDER = "100%j runs & `id` ✓"


@dataclass(slots=True)
class Queue:
    """A login host with SLURM's programs, and nodes that take one rank each."""

    remote: Remote
    slurm: Slurm

    def write_job(self, stages: list[dict[str, object]], *, cluster: dict[str, object] | None = None, **slurm: object) -> None:
        block = {"backend": "slurm", "nodes": 2, "slots": 1, "python": str(self.remote.python()), **(cluster or {})}
        block["slurm"] = {"cpus": 2, "memory_gib": 2, "minutes": 60, **slurm}  # the partition's default is less than leave_s
        (self.remote.folder / "job.yaml").write_text(json.dumps({**JOB, "cluster": block, "stages": stages}))

    def job(self) -> str:
        return str(read_json(self.remote.run.path / "slurm.json")["job"])

    def jobs(self) -> list[str]:
        return self.remote.cluster.out(LOGIN, ["squeue", "--noheader", "--format=%i %T"]).splitlines()


def queue_of(folder: Path, *, hosts: int, accounts: bool = False) -> Iterator[Queue]:
    with Cluster(hosts=hosts, login=True) as cluster, slurm(cluster, accounts=accounts) as running:
        yield Queue(Remote(cluster, folder, ODD_FOLDER), running)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    yield from queue_of(tmp_path, hosts=2)


@pytest.fixture
def spare(tmp_path: Path) -> Iterator[Queue]:
    """With a node more than the job takes."""
    yield from queue_of(tmp_path, hosts=3)


@pytest.fixture
def accounted(tmp_path: Path) -> Iterator[Queue]:
    """With accounts of what has ended."""
    yield from queue_of(tmp_path, hosts=2, accounts=True)


def test_the_chain_by_sbatch_survives_the_end_of_its_time_and_is_submitted_once(queue: Queue, near: RunDir) -> None:
    remote = queue.remote
    queue.write_job(CHAIN)
    running = remote.start("run", "job.yaml")
    remote.wait_for_step(2, running)
    first, run = queue.job(), remote.run
    again = remote.start("resume", run.path.name)
    remote.cluster.out(LOGIN, ["scancel", "--signal=USR1", first])  # as SLURM does before the limit
    code, out, err = remote.end(running)
    assert code == 0, err
    assert remote.end(again)[0] == 0
    assert queue.job() == first
    assert out.splitlines()[0] == str(run.path)
    assert re.search(rf"SLURM job {first}: PENDING.*SLURM job {first}: RUNNING on node\[1-2\]", err, re.DOTALL), err
    assert [event["signal"] for event in remote.events("run.stopped")] == ["SIGUSR1"]
    assert {read_json(run.stage(str(stage["kind"])).done(rank))["world"] for stage in CHAIN for rank in (0, 1)} == {2}
    assert err.count("back into the queue") == 1
    assert remote.left() == {}
    assert queue.jobs() == []
    assert remote.losses(run) == remote.losses(near)


def test_a_lost_node_puts_the_job_back_into_the_queue_and_it_goes_on_elsewhere(spare: Queue) -> None:
    remote = spare.remote
    spare.write_job([{**LONG, "steps": 60, "checkpoint_every": 10}])
    code, out, _ = remote("run", "job.yaml", "--detach")
    assert code == 0
    following = remote.start("resume", remote.run.path.name)
    remote.wait_for_step(10, following)
    before = spare.job()
    remote.cluster.crash("node2")
    code, _, err = remote.end(following)
    assert code == 0, err
    assert (spare.job(), out.splitlines()[0]) == (before, str(remote.run.path))
    assert "resumed from step" in remote.run.stage("pretrain").rank_log(0).read_text()
    assert "NODE_FAIL" in spare.slurm.completions()


def test_a_job_that_waits_and_one_that_runs_are_stopped_from_the_login_host(queue: Queue) -> None:
    remote = queue.remote
    queue.write_job([LONG], cluster={"env": HOSTILE, "secrets": ["WANDB_API_KEY"]})
    code, _, err = remote("run", "job.yaml", "--set", "name=unset")
    assert (code, "[E444] WANDB_API_KEY is not set" in err) == (4, True), err
    running = remote.start("run", "job.yaml", WANDB_API_KEY=CANARY)
    remote.wait_for_step(20, running)
    assert_values_arrived(remote)
    code, out, err = remote("status")
    assert (code, f"SLURM job {queue.job()}: RUNNING on node[1-2]" in out) == (0, True), out + err
    waiting = remote.start("run", "job.yaml", "--set", "name=second", WANDB_API_KEY="x")
    remote.wait_for(lambda: len(queue.jobs()) == 2, waiting)
    for name, process in (("second", waiting), ("far", running)):
        code, out, err = remote("stop", name)
        assert (code, out.endswith(": stopped\n")) == (0, True), err
        code, _, err = remote.end(process)
        assert (code, "go on with: launcher resume" in err) == (6, True), err
    assert in_files(CANARY, remote.folder) == ""
    assert re.search(r"^saved step \d+, stopped; go on with", err, re.MULTILINE), err  # the one that ran
    assert remote.left() == {}
    assert queue.jobs() == []


def test_inside_an_allocation_srun_starts_the_nodes(queue: Queue) -> None:
    remote = queue.remote
    queue.write_job([{**STAGE, "kind": "pretrain"}])
    argv = ["salloc", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--mem=2G"]
    argv += [str(remote.python()), "-m", "launcher", "run", "job.yaml", "--runs", remote.runs_name]
    done = remote.cluster.run(LOGIN, argv, cwd=str(remote.folder), timeout_s=300)
    assert done.returncode == 0, done.stderr
    assert not (remote.run.path / "slurm.json").exists()
    assert [read_json(remote.run.stage("pretrain").done(rank))["world"] for rank in (0, 1)] == [2, 2]


def test_what_the_queue_refuses_is_told_and_nothing_is_started(queue: Queue) -> None:
    remote = queue.remote
    queue.write_job([{**STAGE, "kind": "pretrain"}], partition="nowhere")
    code, out, err = remote("doctor", "job.yaml")
    assert (code, "E442" in out) == (0, False), out + err
    code, _, err = remote("run", "job.yaml")
    assert code == 4
    assert "sbatch [E442]" in err
    assert "invalid partition" in err.lower()


@pytest.mark.needs(*accounts.PROGRAMS)
def test_how_a_job_ended_is_told_after_the_queue_has_forgotten_it(accounted: Queue) -> None:
    remote = accounted.remote
    accounted.write_job([LONG], requeue=False)
    following = remote.start("run", "job.yaml")
    remote.wait_for_step(20, following)
    killed = remote.run.path.name
    code, _, err = remote("run", "job.yaml", "--detach", "--set", "name=second")
    assert code == 0, err
    listed = ["sacct", "--noheader", "--allocations", "--format=JobName", "--jobs=2"]
    remote.wait_for(lambda: "second" in remote.cluster.out(LOGIN, listed), following)
    remote.cluster.out(LOGIN, ["scancel", accounted.job()])
    remote.cluster.out("node1", ["pkill", "-KILL", "-f", "launcher node"])  # and srun: nobody is left who could say why
    code, _, err = remote.end(following)
    assert (code, "[E521] no node has said how the run ended: SLURM job 1: FAILED" in err) == (5, True), err
    for forget in (False, True):
        if forget:
            accounted.slurm.forget()
            assert remote.cluster.run(LOGIN, ["squeue", "--states=all", "--jobs=2"]).returncode != 0
        assert "SLURM job 2: CANCELLED" in remote("status", "second")[1]
    code, out, err = remote("resume", killed, "--detach")
    run = find_run(killed, remote.runs())
    assert (code, out, read_json(run.path / "slurm.json")["job"]) == (0, f"{run.path}\n", "3"), err
    assert remote("stop", killed, "--now")[0] == 0
