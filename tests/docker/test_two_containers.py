"""docker/compose.cpu.yaml, as the howto starts it: a job over ssh with a rank in each of two containers."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.rundir.find import find_runs
from launcher.rundir.folder import read_json
from tests.cluster.remote import JOB, STAGE
from tests.docker.daemon import Daemon
from tests.docker.howto import COMPOSE, SHIM, block
from tests.docker.supplies import ROOT


def test_two_containers_train_one_model_over_ssh(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps({**JOB, "stages": [{**STAGE, "kind": "pretrain"}]}))
    tmp_path.chmod(0o755)
    up, _, down = block("two nodes").rpartition("docker compose")
    given = {"JOBS": str(tmp_path), "COMPOSE": str(COMPOSE)}
    script = SHIM + up.replace("docker compose -f docker/compose.cpu.yaml build login\n", "")
    daemon.sh(script, env=given, cwd=ROOT, timeout_s=400)
    assert_trained(daemon.folder / "data" / "volumes" / "zerolaunch_runs" / "_data")
    assert_kept_apart(daemon)
    daemon.sh(f"{SHIM}docker compose{down}", env=given, cwd=ROOT)
    assert daemon.run("ps", "--all", "--quiet").stdout == ""


def assert_trained(runs: Path) -> None:
    (run,) = find_runs(runs)
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert {event["host"] for event in events if event["kind"] == "host.running"} == {"node1", "node2"}
    stage = run.stage("pretrain")
    assert read_json(stage.result)["steps"] == STAGE["steps"]
    assert [stage.rank_log(rank).exists() for rank in (0, 1, 2)] == [True, True, False]
    assert read_json(run.path / "plan.json")["machine"]["hosts"] == ["node1", "node2"]


def assert_kept_apart(daemon: Daemon) -> None:
    """No node sees the private key of the login host, nor has a key of its own anywhere but in memory."""
    for name in ("node1", "node2"):
        container = f"zerolaunch-{name}-1"
        assert daemon.run("exec", container, "ls", "-A", "/keys").stdout == ""
        assert daemon.run("diff", container).stdout == ""
        assert daemon.run("inspect", "--format", "{{.State.Health.Status}}", container).stdout == "healthy\n"
    login = (daemon.folder / "data" / "volumes" / "zerolaunch_keys" / "_data" / "id_ed25519").stat()
    assert (login.st_uid, login.st_mode & 0o777) == (1000, 0o600)
