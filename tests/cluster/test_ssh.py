"""Real runs over ssh: two hosts of one rank each, started from a third. The same figures as on one host; faults end nothing
but what they have to, are told with host and remedy, and leave no process on any host."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import launcher
from launcher.hosts.connection.wire import LEASE_S
from launcher.rundir.artifact import find_damage
from launcher.rundir.folder import RunDir, read_json
from tests.cluster.remote import JOB, STAGE, Remote, environ_of
from tests.cluster.world import LOGIN, Cluster

LONG = {**STAGE, "kind": "pretrain", "steps": 400, "checkpoint_every": 20}
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
# Everything that has a meaning to some shell and comes through pdsh and DeepSpeed all the same.
ODD = {
    "SHELL_LIKE": "'single' ; & | > < * ? [a] {b} (c) ~ #y ^z",
    "PDSH_LIKE": "1,2,3 a=b a:b@c",
    "LEADING": "-oProxyCommand=id",
    "BLANKS": "two  blanks",
    "TILDE": "~/x:~root",
    "ACCENTS": "äöü ✓ 日本",
    "WORDS": "äöü",
}


ROOT = Path(launcher.__file__).parent.parent


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with Cluster(hosts=2, login=True) as cluster:
        yield Remote(cluster, tmp_path)


@pytest.mark.needs("pdsh")
def test_the_whole_chain_over_ssh_gives_the_figures_of_one_host_and_so_do_deepspeeds_own_commands(remote: Remote) -> None:
    remote.write_job(CHAIN)
    code, _, err = remote("run", "job.yaml")
    assert code == 0, err
    over_ssh = remote.run
    assert remote.left() == {}
    (remote.folder / "local.yaml").write_text(json.dumps({**JOB, "cluster": {"slots": 2}, "stages": CHAIN}))
    code, _, err = remote("run", "local.yaml", "--set", "name=near")
    assert code == 0, err
    near = next((remote.folder / "runs" / "near").iterdir())
    assert list(remote.losses(over_ssh)) == sorted(stage["kind"] for stage in CHAIN)
    assert remote.losses(over_ssh) == remote.losses(type(over_ssh)(near))
    for stage in CHAIN:
        weights = [path / "stages" / str(stage["kind"]) / "artifact" / "model.safetensors" for path in (over_ssh.path, near)]
        assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}) == 1, stage["kind"]
    by_hand = RunDir(remote.folder / "a run by hand")
    _run_by_hand(remote, by_hand)
    assert remote.losses(by_hand) == {name: remote.losses(over_ssh)[name] for name in ("pretrain", "sft")}


def _run_by_hand(remote: Remote, run: RunDir) -> None:
    """The first two stages by `rendered/commands.sh`, with a folder and values that a shell would read in its own way."""
    remote.write_job(CHAIN[:2], env={**ODD, "PYTHONPATH": str(ROOT)})
    code, _, err = remote("render", "job.yaml", "-o", str(run.path))
    assert code == 0, err
    pipe = subprocess.PIPE
    script = ["sh", str(run.rendered / "commands.sh")]
    running = remote.cluster.start(LOGIN, script, env={"MLFLOW_TRACKING_TOKEN": CANARY}, stdout=pipe, stderr=subprocess.STDOUT)
    remote.wait_for(
        lambda: all(remote.processes(name, carry=f"RANK={rank}") for rank, name in enumerate(remote.cluster.nodes)), running
    )
    for rank, name in enumerate(remote.cluster.nodes):
        found = environ_of(remote, name, remote.processes(name, carry=f"RANK={rank}")[0])
        assert {key: found.get(key) for key in ODD} == ODD
        assert found["LAUNCHER_RUN"] == str(run.path)
        assert "MLFLOW_TRACKING_TOKEN" not in found
    code, out, _ = remote.end(running)
    assert code == 0, out
    assert CANARY not in out
    for stage in ("pretrain", "sft"):
        assert [read_json(run.stage(stage).done(rank))["world"] for rank in range(2)] == [2, 2]
        assert find_damage(run.stage(stage).artifact) == []


def test_what_pdsh_would_change_is_refused(remote: Remote) -> None:
    remote.write_job([LONG], env=HOSTILE, secrets=["WANDB_API_KEY"])
    code, _, err = remote("render", "job.yaml", "-o", "one")
    assert code == 0, err
    done = remote.cluster.run(LOGIN, ["sh", str(remote.folder / "one/rendered/commands.sh")])
    assert done.returncode == 2
    told = [line.split(":")[0] for line in done.stderr.splitlines()[1:-1]]
    assert told == ["cluster.secrets", "cluster.env.BLANKS", "cluster.env.PDSH_LIKE", "cluster.env.SHELL_LIKE"]


def test_values_arrive_byte_by_byte_and_a_secret_is_nowhere_but_there(remote: Remote) -> None:
    remote.write_job([LONG], env=HOSTILE, secrets=["WANDB_API_KEY"])
    running = remote.start("run", "job.yaml", WANDB_API_KEY=CANARY, NOT_HANDED_ON="x")
    remote.wait_for_step(20, running)
    for name in remote.cluster.nodes:
        found = environ_of(remote, name, remote.rank(name))
        assert {key: found.get(key) for key in HOSTILE} == HOSTILE
        assert found["WANDB_API_KEY"] == CANARY
        assert "NOT_HANDED_ON" not in found
    for name in remote.cluster.names:
        words = remote.cluster.out(name, ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])
        assert CANARY not in words
    code, _, _ = remote("stop")
    assert code == 0
    assert remote.end(running)[0] == 6
    assert remote.left() == {}
    assert subprocess.run(["grep", "-r", CANARY, str(remote.folder)], check=False, capture_output=True).stdout == b""


def test_a_rank_that_is_killed_on_another_host_is_named_and_the_run_goes_on_from_its_checkpoint(remote: Remote) -> None:
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml", "--set", "stages.pretrain.steps=60")
    remote.wait_for_step(20, running)
    remote.kill("node2", remote.rank("node2"))
    code, _, err = remote.end(running)
    assert code == 5
    assert "stage pretrain, rank 1 [E501] killed by SIGKILL" in err
    assert remote.left() == {}
    code, _, err = remote("resume", "--stage", "pretrain")
    assert code == 0, err
    assert "resumed from step" in remote.run.stage("pretrain").rank_log(0).read_text()


def test_a_broken_connection_ends_nothing(remote: Remote) -> None:
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml", "--set", "stages.pretrain.steps=120")
    remote.wait_for_step(20, running)
    ranks = {name: remote.rank(name) for name in remote.cluster.nodes}
    for pid in _ssh_clients(remote):
        remote.kill(LOGIN, pid)
    remote.wait_for(lambda: len(remote.events("host.unreachable")) == 2, running)
    remote.wait_for(lambda: len(remote.events("host.running")) == 4, running)
    assert {name: remote.rank(name) for name in remote.cluster.nodes} == ranks
    remote.cluster.cable("node2", up=False)
    remote.wait_for(lambda: len(remote.events("host.unreachable")) == 3, running)
    remote.cluster.heal("node2")
    code, _, err = remote.end(running)
    assert code == 0, err
    assert [event["kind"] for event in remote.events("stage.")].count("stage.launched") == 1


def test_a_host_that_crashes_is_named_and_the_other_one_is_freed(remote: Remote) -> None:
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml", "--set", "stages.pretrain.steps=120")
    remote.wait_for_step(20, running)
    remote.cluster.crash("node2")
    began_s = time.monotonic()
    code, _, err = remote.end(running)
    assert code == 4
    assert "node2 [E417]" in err
    assert time.monotonic() - began_s < LEASE_S + 30
    assert remote.processes("node1") == []
    remote.cluster.boot("node2")
    code, _, err = remote("resume")
    assert code == 0, err


def test_after_the_death_of_the_controller_the_next_one_ends_what_is_left_first(remote: Remote) -> None:
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml", "--set", "stages.pretrain.steps=120")
    remote.wait_for_step(20, running)
    before = {name: set(remote.processes(name)) for name in remote.cluster.nodes}
    for pid in [*remote.processes(LOGIN), *_controllers(remote)]:
        remote.kill(LOGIN, pid)
    running.communicate(timeout=30)
    assert all(remote.processes(name) for name in remote.cluster.nodes)
    code, _, err = remote("resume")
    assert code == 0, err
    assert remote.left() == {}
    assert not any(before[name] & set(remote.processes(name)) for name in remote.cluster.nodes)


def _ssh_clients(remote: Remote) -> list[int]:
    out = remote.cluster.out(LOGIN, ["sh", "-c", "pgrep -x ssh || true"])
    return [int(word) for word in out.split()]


def _controllers(remote: Remote) -> list[int]:
    out = remote.cluster.out(LOGIN, ["sh", "-c", "pgrep -f -- '[-]m launcher run' || true"])
    return [int(word) for word in out.split()]
