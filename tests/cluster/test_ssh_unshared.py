"""Runs over ssh where every host has its own disk for the runs folder: the figures of one host, and the same resumes."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.rundir.artifact import find_damage
from launcher.rundir.folder import RunDir
from tests.cluster.remote import CHAIN, JOB, STAGE, Remote
from tests.cluster.world import FOLDER, LOGIN, Cluster

LONG = {**STAGE, "kind": "pretrain", "steps": 60, "checkpoint_every": 10}


class Unshared(Remote):
    """Job file and Python are shared, runs/ is not."""

    def runs(self, name: str = LOGIN) -> Path:
        return self.cluster.disk(name, str(self.folder / "runs"))

    @property
    def run(self) -> RunDir:
        """Not by find_runs: it resolves links, and the way into a host's disk is one that leads out of it."""
        return RunDir(max(self.runs().glob("*/*/job.json"), key=lambda path: path.stat().st_mtime_ns).parent)

    def seen_by(self, name: str) -> RunDir:
        """The run folder on a host's disk."""
        return RunDir(self.runs(name) / self.run.path.relative_to(self.runs()))

    def empty(self, name: str) -> None:
        for path in self.runs(name).iterdir():
            shutil.rmtree(path)

    def steps(self, name: str) -> list[str]:
        """Names of the checkpoints that a host has."""
        return sorted(path.name for path in self.seen_by(name).stage("pretrain").checkpoints.glob("step*"))


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Unshared]:
    (tmp_path / "runs").mkdir()
    with Cluster(hosts=2, login=True, private=(str(tmp_path / "runs"),)) as cluster:
        yield Unshared(cluster, tmp_path)


def test_the_whole_chain_without_a_shared_folder_gives_the_figures_of_one_host(remote: Unshared, near: RunDir) -> None:
    remote.write_job(CHAIN)
    code, _, err = remote("run", "job.yaml")
    assert code == 0, err
    apart, there = remote.run, remote.seen_by("node2")
    assert remote.left() == {}
    assert list(remote.losses(apart)) == sorted(stage["kind"] for stage in CHAIN)
    assert remote.losses(apart) == remote.losses(near)
    for stage in CHAIN:
        folders = [run.stage(str(stage["kind"])) for run in (apart, near)]
        weights = [(folder.artifact / "model.safetensors").read_bytes() for folder in folders]
        assert len({hashlib.sha256(one).hexdigest() for one in weights}) == 1, stage["kind"]
        assert not folders[0].away.exists()
        logs = [run.stage(str(stage["kind"])).rank_log(1).read_bytes() for run in (apart, there)]
        assert logs[0] == logs[1] != b""
        for checkpoint in folders[0].checkpoints.glob("step*"):
            assert find_damage(checkpoint) == []


def test_an_adapter_on_a_4_bit_base_without_a_shared_folder_gives_the_figures_of_one_host(remote: Unshared) -> None:
    """The one kind of stage in which rank 0 sends others a model while they run: the merged one, to be measured."""
    wide = {**JOB["model"]["new"], "hidden": 64, "ffn": 64}
    model = {**JOB["model"], "new": wide, "adapter": {"kind": "lora", "rank": 4}, "quantize": "nf4"}
    stages = [{**STAGE, "kind": "sft"}]
    remote.write_job(stages, model=model)
    code, _, err = remote("run", "job.yaml")
    assert code == 0, err
    apart = remote.run
    near = {**JOB, "name": "near", "model": model, "cluster": {"slots": 2}, "stages": stages}
    (remote.folder / "local.yaml").write_text(json.dumps(near))
    code, _, err = remote("run", "local.yaml")
    assert code == 0, err
    near_run = RunDir(next((remote.runs() / "near").iterdir()))
    assert remote.losses(apart) == remote.losses(near_run)
    assert len(remote.losses(apart)["sft"]) >= STAGE["steps"]
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        both = [(run.stage("sft").artifact / name).read_bytes() for run in (apart, near_run)]
        assert hashlib.sha256(both[0]).digest() == hashlib.sha256(both[1]).digest(), name
    assert [find_damage(folder) for folder in apart.stage("sft").checkpoints.glob("step*")] == [[]]


def test_a_rank_that_is_killed_on_its_own_disk_is_named_and_the_run_goes_on_from_its_checkpoint(remote: Unshared) -> None:
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml")
    remote.wait_for_step(20, running)
    remote.wait_for(lambda: remote.run.stage("pretrain").metrics.exists(), running)  # told while it runs
    remote.kill("node2", remote.rank("node2"))
    code, _, err = remote.end(running)
    assert code == 5
    assert "stage pretrain, rank 1 [E501] killed by SIGKILL" in err
    assert remote.left() == {}
    assert remote.steps(LOGIN) == remote.steps("node1") == remote.steps("node2")
    remote.empty("node2")
    code, _, err = remote("resume")
    assert code == 0, err
    assert "resumed from step" in remote.run.stage("pretrain").rank_log(0).read_text()
    assert [event["kind"] for event in remote.events("stage.")].count("stage.resumed") == 1


def test_a_stop_saves_on_every_disk_and_the_checkpoint_is_fetched_before_it_is_told(remote: Unshared) -> None:
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml")
    remote.wait_for_step(10, running)
    remote.wait_for(lambda: remote.run.stage("pretrain").listening.exists(), running)
    [controller] = remote.cluster.out(LOGIN, ["pgrep", "-f", "--", "[-]m launcher run"]).split()
    remote.kill(LOGIN, int(controller), signal.SIGINT)
    code, _, err = remote.end(running)
    assert code == 6, err
    [left] = remote.events("stage.left")
    stage = remote.run.stage("pretrain")
    assert find_damage(stage.checkpoints / f"step{left['step']}") == []
    assert not stage.away.exists()
    assert remote.steps(LOGIN) == remote.steps("node1") == remote.steps("node2")
    code, _, err = remote("resume")
    assert code == 0, err
    assert f"goes on from the checkpoint of step {left['step']}" in err


def test_after_the_death_of_the_controller_its_checkpoints_are_fetched_first(remote: Unshared) -> None:
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml")
    remote.wait_for_step(20, running)
    for pid in remote.cluster.out(LOGIN, ["pgrep", "-f", "--", "[-]m launcher"]).split():
        remote.kill(LOGIN, int(pid))
    running.communicate(timeout=30)
    assert remote.steps(LOGIN) == []
    code, _, err = remote("resume")
    assert code == 0, err
    assert remote.left() == {}
    assert "resumed from step" in remote.run.stage("pretrain").rank_log(0).read_text()
    assert {event["host"] for event in remote.events("host.fetched")} == {"node1", "node2"}


def test_hosts_that_share_a_disk_which_the_controller_does_not_see_are_served_once(remote: Unshared) -> None:
    runs = str(remote.folder / "runs")
    remote.cluster.overlay("node2", runs, f"{FOLDER}/node1/disk{runs}")
    remote.write_job([{**STAGE, "kind": "pretrain"}])
    code, _, err = remote("run", "job.yaml")
    assert code == 0, err
    assert len({event["host"] for event in remote.events("host.shipped")}) == 1
    assert len({event["host"] for event in remote.events("host.fetched")}) == 1
    stage = remote.run.stage("pretrain")
    assert [find_damage(folder) for folder in (stage.artifact, stage.checkpoints / "step4")] == [[], []]


def test_the_ranks_meet_without_a_shared_folder_and_it_is_said(remote: Unshared) -> None:
    remote.write_job([LONG])
    code, out, err = remote("doctor", "job.yaml", "--json")
    assert code == 0, out + err
    told = json.loads(out)
    assert told["rendezvous"]["world"] == 2
    said = {host["host"]: [(problem["code"], problem["stops"]) for problem in host["problems"]] for host in told["hosts"]}
    assert all(("E432", False) in said[name] for name in remote.cluster.nodes)
