"""docs/howto/cloud.md: its commands, typed on a laptop and two fresh nodes, end in a finished run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.rundir.folder import read_json
from tests.cluster.remote import STAGE, WAIT_S, Remote
from tests.cluster.world import LOGIN, Cluster

TEXT = (Path(__file__).parents[2] / "docs/howto/cloud.md").read_text(encoding="utf-8")
WORK = "/shared/work"


def blocks() -> Iterator[tuple[str, str]]:
    """(Where, commands)."""
    for where, commands in re.findall(r"```sh\n# (\w+)\n(.*?)```", TEXT, re.S):
        yield where, commands.replace("slots=8", "slots=1")


def test_the_commands_of_the_howto_lead_from_fresh_nodes_to_a_finished_run(tmp_path: Path) -> None:
    with Cluster(hosts=2, login=True) as cluster:
        for name in cluster.nodes:
            for file in ("id_ed25519", "id_ed25519.pub", "known_hosts"):
                (cluster.ssh_folder(name) / file).unlink()
        remote = Remote(cluster, tmp_path)
        remote.write_job([{**STAGE, "kind": "pretrain", "steps": 6}])
        (tmp_path / "hosts").unlink()
        program = tmp_path / ".venv" / "bin" / "launcher"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec {remote.python()} -m launcher "$@"\n')
        program.chmod(0o755)
        printed = []
        for where, commands in blocks():
            script = commands.replace(WORK, str(tmp_path))
            done = cluster.run(LOGIN if where == "laptop" else where, ["sh", "-euc", script], timeout_s=400)
            assert done.returncode == 0, (commands, done.stdout, done.stderr)
            printed.append(done.stdout)
        assert "2 hosts: ready" in "".join(printed)
        assert "2 ranks met" in "".join(printed)
        deadline_s = time.monotonic() + WAIT_S
        while not remote.events("run.finished") or remote.left():
            assert time.monotonic() < deadline_s, (remote.events(), remote.left())
            time.sleep(0.2)
    assert read_json(remote.run.stage("pretrain").result)["steps"] == 6
