"""Real runs over ssh: two hosts of one rank each, started from a third. The same figures as on one host; faults end nothing
but what they have to, are told with host and remedy, and leave no process on any host."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import launcher
from launcher.hosts.connection.wire import LEASE_S
from launcher.rundir.artifact import find_damage
from launcher.rundir.find import find_runs
from launcher.rundir.folder import RunDir, read_json
from tests.cluster.remote import CANARY, CHAIN, HOSTILE, STAGE, Remote, assert_values_arrived, environ_of, in_files
from tests.cluster.world import LOGIN, Cluster

LONG = {**STAGE, "kind": "pretrain", "steps": 400, "checkpoint_every": 20}
ENDED_WITHIN_S = 25.0  # the others' last words, grace and SIGKILL
UNREACHABLE_WITHIN_S = 8.0  # three beats of two seconds, and what a busy machine adds
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
def test_the_whole_chain_over_ssh_gives_the_figures_of_one_host_and_so_do_deepspeeds_own_commands(
    remote: Remote, near: RunDir
) -> None:
    remote.write_job(CHAIN)
    code, _, err = remote("run", "job.yaml")
    assert code == 0, err
    over_ssh = remote.run
    assert remote.left() == {}
    assert list(remote.losses(over_ssh)) == sorted(stage["kind"] for stage in CHAIN)
    assert remote.losses(over_ssh) == remote.losses(near)
    for stage in CHAIN:
        weights = [
            path / "stages" / str(stage["kind"]) / "artifact" / "model.safetensors" for path in (over_ssh.path, near.path)
        ]
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
        found = environ_of(remote.cluster, name, remote.processes(name, carry=f"RANK={rank}")[0])
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
    remote.runs_name = 'it\'s $HOME "runs" ✓'
    remote.write_job([LONG], env=HOSTILE, secrets=["WANDB_API_KEY"])
    running = remote.start("run", "job.yaml", WANDB_API_KEY=CANARY, NOT_HANDED_ON="x")
    remote.wait_for_step(20, running)
    assert_values_arrived(remote)
    for name in remote.cluster.nodes:
        assert "NOT_HANDED_ON" not in environ_of(remote.cluster, name, remote.rank(name))
    code, _, _ = remote("stop")
    assert code == 0
    assert remote.end(running)[0] == 6
    assert remote.left() == {}
    assert in_files(CANARY, remote.folder) == ""


def test_a_stop_over_ssh_saves_on_all_hosts_and_resume_goes_on_from_that_step(remote: Remote) -> None:
    """The controller's host has no rank: its word goes through the fleet to each keeper."""
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml", "--set", "stages.pretrain.steps=60", "--set", "stages.pretrain.log_every=1")
    remote.wait_for_step(20, running)
    [controller] = _controllers(remote)
    remote.kill(LOGIN, controller, signal.SIGTERM)
    code, _, err = remote.end(running)
    assert code == 6, err
    assert remote.left() == {}
    [left] = remote.events("stage.left")
    assert f"saved step {left['step']}, stopped" in err
    assert {event["code"] for event in remote.events("host.ended")} == {0}
    code, _, err = remote("resume")
    assert code == 0, err
    assert f"goes on from the checkpoint of step {left['step']}" in err
    steps = [line["step"] for line in remote.losses(remote.run)["pretrain"] if "loss" in line]
    assert steps == list(range(1, 61))


def test_a_taken_port_costs_one_try_and_a_rank_that_is_killed_is_named_and_the_run_goes_on_from_its_checkpoint(
    remote: Remote,
) -> None:
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml", "--set", "stages.pretrain.steps=60")
    taken = _take_the_port(remote, running)
    remote.wait_for_step(20, running)
    assert len(remote.events("stage.launched")) == 2
    [failed] = remote.events("rank.problem")
    assert (failed["problems"][0]["code"], failed["rank"]) == ("E406", 0)
    assert f"port {taken} of node1, on which the ranks meet, is taken" in failed["problems"][0]["what"]
    assert "ss -ltnp" in failed["problems"][0]["hint"]
    remote.kill("node2", remote.rank("node2"))
    code, _, err = remote.end(running)
    assert code == 5
    assert "stage pretrain, rank 1 [E501] killed by SIGKILL" in err
    assert remote.left() == {}
    code, _, err = remote("resume", "--stage", "pretrain")
    assert code == 0, err
    assert "resumed from step" in remote.run.stage("pretrain").rank_log(0).read_text()


def test_a_broken_connection_ends_nothing(remote: Remote) -> None:
    """The client is killed, the server is killed, the cable is out: each is told within UNREACHABLE_WITHIN_S, with its host."""
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml", "--set", "stages.pretrain.steps=120")
    remote.wait_for_step(20, running)
    ranks = {name: remote.rank(name) for name in remote.cluster.nodes}
    broke_s = time.time()
    remote.cluster.out(LOGIN, ["pkill", "-KILL", "-f", "ssh .* node1 "])
    remote.cluster.out("node2", ["pkill", "-KILL", "-f", "^sshd: .*notty"])
    remote.wait_for(lambda: len(remote.events("host.unreachable")) == 2, running)
    remote.wait_for(lambda: len(remote.events("host.running")) == 4, running)
    assert {name: remote.rank(name) for name in remote.cluster.nodes} == ranks
    cut_s = time.time()
    remote.cluster.cable("node2", up=False)
    remote.wait_for(lambda: len(remote.events("host.unreachable")) == 3, running)
    remote.cluster.heal("node2")
    code, _, err = remote.end(running)
    assert code == 0, err
    told = remote.events("host.unreachable")
    assert {event["host"] for event in told[:2]} == {"node1", "node2"}
    assert told[2]["host"] == "node2"
    assert max(float(str(event["t"])) for event in told[:2]) - broke_s < UNREACHABLE_WITHIN_S
    assert float(str(told[2]["t"])) - cut_s < UNREACHABLE_WITHIN_S
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


def test_what_an_earlier_attempt_left_is_ended_first_and_nobody_elses_processes(remote: Remote) -> None:
    """A keeper is killed under its controller. In the next attempt the controller is, and the keeper of node2 too."""
    remote.write_job([LONG])
    running = remote.start("run", "job.yaml", "--set", "stages.pretrain.steps=60")
    remote.wait_for_step(20, running)
    strangers = {name: _strangers(remote, name, remote.rank(name)) for name in remote.cluster.nodes}
    killed_s = time.monotonic()
    remote.cluster.out("node2", ["pkill", "-KILL", "-f", "launcher.hosts keep"])
    code, _, err = remote.end(running)
    assert code == 4
    assert "node2 [E417]" in err
    assert "dmesg" in err
    assert time.monotonic() - killed_s < ENDED_WITHIN_S
    assert remote.left() == {}

    running = remote.start("resume")
    remote.wait_for(lambda: len(remote.events("host.running")) == 2 * len(remote.cluster.nodes) + 1, running)  # one was `up`
    remote.wait_for(lambda: all(map(remote.processes, remote.cluster.nodes)), running)
    before = {name: remote.processes(name) for name in remote.cluster.nodes}
    for pid in [*remote.processes(LOGIN), *_controllers(remote)]:
        remote.kill(LOGIN, pid)
    remote.cluster.out("node2", ["pkill", "-KILL", "-f", "launcher.hosts keep"])
    running.communicate(timeout=30)
    assert all(remote.processes(name) for name in remote.cluster.nodes)
    asked_s = time.time()
    code, _, err = remote("resume")
    assert code == 0, err
    assert remote.left() == {}
    ready = {event["host"]: event for event in remote.events("host.ready") if float(str(event["t"])) > asked_s}
    assert set(before["node2"]) <= set(ready["node2"]["left"])  # node1's keeper ends what it has when it hears of the next
    assert [process.poll() for processes in strangers.values() for process in processes] == [None] * 6
    for process in (process for processes in strangers.values() for process in processes):
        process.kill()
        process.wait()


def _strangers(remote: Remote, name: str, rank: int) -> list[subprocess.Popen[str]]:
    """Look like a rank of ours and are none: of a run whose folder begins as ours does, of one below it, of none."""
    argv = remote.cluster.out(name, ["sh", "-c", f"tr '\\0' ' ' < /proc/{rank}/cmdline"])
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    sleep = ["bash", "-c", 'exec -a "$0" sleep 600', argv]
    tokens = ({"LAUNCHER_RUN": f"{remote.token}0"}, {"LAUNCHER_RUN": f"{remote.token}/stages"}, {"OTHER": remote.token})
    return [remote.cluster.start(name, sleep, env=env, **pipes) for env in tokens]


def _take_the_port(remote: Remote, running: subprocess.Popen[str]) -> int:
    """Listen on the port on which the ranks are about to meet, before they have imported torch. The port."""

    def found() -> re.Match[str] | None:
        log = remote.run.stage("pretrain").logs / "launcher.log" if find_runs(remote.runs()) else None
        return re.search(r"ranks meet at \S+:(\d+) ", log.read_text()) if log and log.exists() else None

    remote.wait_for(lambda: found() is not None, running)
    port = str(found()[1])  # type: ignore[index]
    listen = "import socket, sys, time; server = socket.create_server(('', int(sys.argv[1]))); time.sleep(60)"
    remote.cluster.start("node1", [sys.executable, "-S", "-c", listen, port])
    return int(port)


def _controllers(remote: Remote) -> list[int]:
    out = remote.cluster.out(LOGIN, ["sh", "-c", "pgrep -f -- '[-]m launcher run' || true"])
    return [int(word) for word in out.split()]
