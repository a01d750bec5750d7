"""The test cluster itself: each thing that other tests rely on, done once for real."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.world import HOME, Cluster, HostError

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable


def ssh(cluster: Cluster, where: str, to: str, *options: str) -> subprocess.CompletedProcess[str]:
    return cluster.run(where, ["ssh", *options, to, "hostname"])


# --- hosts, processes, names ----------------------------------------------------------------------------------------------


def test_hosts_have_names_addresses_and_root_without_a_password(cluster: Cluster) -> None:
    assert ssh(cluster, "node1", "node2").stdout == "node2\n"
    assert ssh(cluster, "node2", "node1").stdout == "node1\n"
    assert ssh(cluster, "node1", cluster.address("node2")).stdout == "node2\n"
    assert cluster.out("node1", ["sh", "-c", "cat /etc/hostname; echo ~; id -u"]) == f"node1\n{HOME}\n0"
    assert "eth0" in cluster.out("node1", ["ip", "-brief", "address", "show", "to", "10.77.0.11"])
    assert cluster.hostfile(slots=4) == "node1 slots=4\nnode2 slots=4\n"


def test_a_host_sees_its_own_processes_only_and_reaps_orphans(cluster: Cluster) -> None:
    sleeper = cluster.start("node1", ["sleep", "1000"])
    assert cluster.run("node2", ["pkill", "sleep"]).returncode == 0  # what pid 1 waits for: not its end
    assert sleeper.poll() is None
    cluster.out("node1", ["sh", "-c", "sh -c 'sleep 0.05 & exec sh -c true'"])
    wait_for(lambda: "0.05" not in cluster.out("node1", ["ps", "-eo", "args"]))
    assert "defunct" not in cluster.out("node1", ["ps", "-eo", "args"])


def test_a_signal_reaches_the_program_that_was_started(cluster: Cluster) -> None:
    script = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(7))\nprint('there', flush=True)\ntime.sleep(60)"
    process = cluster.start("node1", [PYTHON, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.terminate()
    assert process.wait(10) == 7


def test_run_tells_codes_outputs_stdin_environment_and_folder(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.run("node1", ["sh", "-c", "cat; pwd; echo $A; exit 3"], env={"A": "x y"}, stdin="in\n", cwd=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, f"in\n{tmp_path}\nx y\n")
    assert cluster.run("node1", ["no-such-program"]).returncode == 127
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.run("node1", ["sleep", "60"], timeout_s=0.1)
    with pytest.raises(HostError, match="ended with 3"):
        cluster.out("node1", ["sh", "-c", "exit 3"])


# --- files ----------------------------------------------------------------------------------------------------------------


def test_files_are_shared_but_for_what_each_host_has_of_its_own(tmp_path: Path) -> None:
    with Cluster(hosts=2, private=("/srv",)) as cluster:
        for folder in ("/srv", "/run", "/dev/shm", "/var/log", f"{HOME}/.ssh"):
            cluster.out("node1", ["touch", f"{folder}/mark"])
            assert cluster.run("node2", ["ls", f"{folder}/mark"]).returncode == 2
            assert not Path(folder, "mark").exists()
        for folder in (str(tmp_path), HOME):
            cluster.out("node1", ["touch", f"{folder}/mark"])
            cluster.out("node2", ["ls", f"{folder}/mark"])
        assert (tmp_path / "mark").exists()
        assert cluster.path("node1", "/srv/mark").exists()
        assert cluster.disk("node1", "/srv").joinpath("mark").exists()
        cluster.crash("node1")
        assert cluster.disk("node1", "/srv").joinpath("mark").exists()
        cluster.boot("node1")
        cluster.out("node1", ["ls", "/srv/mark", f"{HOME}/.ssh/mark"])
        assert cluster.run("node1", ["ls", "/run/mark", "/dev/shm/mark"]).returncode == 2


def test_home_may_be_private_and_a_private_folder_must_exist() -> None:
    with Cluster(hosts=2, private=(HOME,)) as cluster:
        cluster.out("node1", ["touch", f"{HOME}/mark"])
        assert cluster.run("node2", ["ls", f"{HOME}/mark"]).returncode == 2
        assert ssh(cluster, "node1", "node2").stdout == "node2\n"
    with pytest.raises(ValueError, match=r"'/no/such' is no folder"):
        Cluster(private=("/no/such",))


def test_one_host_may_see_another_version_of_a_file_or_folder(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shared")
    (tmp_path / "other").write_text("other")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    (tmp_path / "empty").mkdir()
    cluster.overlay("node2", tmp_path / "file", tmp_path / "other")
    cluster.overlay("node2", tmp_path / "folder", tmp_path / "empty")
    for _ in range(2):
        assert cluster.out("node1", ["sh", "-c", f"cd {tmp_path}; cat file; ls folder"]) == "sharedold"
        assert cluster.out("node2", ["sh", "-c", f"cd {tmp_path}; cat file; ls folder"]) == "other"
        cluster.crash("node2")
        cluster.boot("node2")


def test_names_and_keys_are_each_hosts_own(cluster: Cluster) -> None:
    cluster.etc_hosts("node1").write_text("127.0.0.1 localhost\n")
    started = time.monotonic()
    assert "Name or service not known" in ssh(cluster, "node1", "node2").stderr
    assert time.monotonic() - started < 2
    assert ssh(cluster, "node2", "node1").returncode == 0
    (cluster.ssh_folder("node1") / "authorized_keys").write_text("")
    assert "Permission denied" in ssh(cluster, "node2", "node1").stderr
    (cluster.ssh_folder("node1") / "known_hosts").write_text("")
    assert "Host key verification failed" in ssh(cluster, "node1", cluster.address("node2")).stderr


# --- faults ---------------------------------------------------------------------------------------------------------------


def test_a_crash_ends_everything_in_a_host_and_a_boot_brings_it_back(cluster: Cluster) -> None:
    sleeper = cluster.start("node2", ["sleep", "1000"])
    over_ssh = cluster.start("node1", ["ssh", "node2", "sleep 1000"])
    wait_for(lambda: cluster.run("node2", ["pgrep", "-f", "^sleep 1000$"]).stdout.count("\n") == 2)
    cluster.crash("node2")
    assert sleeper.wait(5) == -signal.SIGKILL
    assert over_ssh.wait(5) == 255
    assert not cluster.is_up("node2")
    assert "Connection refused" in ssh(cluster, "node1", "node2").stderr
    with pytest.raises(HostError, match="node2 is down"):
        cluster.run("node2", ["true"])
    cluster.boot("node2")
    assert ssh(cluster, "node1", "node2").stdout == "node2\n"


def test_a_pulled_cable_is_silence(cluster: Cluster) -> None:
    cluster.cable("node2", up=False)
    assert "timed out" in ssh(cluster, "node1", "node2", "-oConnectTimeout=1").stderr
    assert cluster.out("node2", ["hostname"]) == "node2"
    cluster.cable("node2", up=True)
    assert ssh(cluster, "node1", "node2").stdout == "node2\n"


def test_keep_alive_notices_a_pulled_cable() -> None:
    with Cluster(hosts=2, keep_alive_s=1) as cluster:
        session = cluster.start("node1", ["ssh", "node2", "echo there; sleep 1000"], stdout=subprocess.PIPE)
        assert session.stdout is not None
        assert session.stdout.readline() == "there\n"
        cluster.cable("node2", up=False)
        assert session.wait(10) == 255


def test_stopped_sshd_refuses_logins_and_keeps_sessions(cluster: Cluster) -> None:
    session = cluster.start(
        "node1", ["ssh", "node2", "echo there; read word; echo $word"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert session.stdout is not None
    assert session.stdout.readline() == "there\n"
    cluster.stop_sshd("node2")
    assert "Connection refused" in ssh(cluster, "node1", "node2").stderr
    assert session.communicate("still\n", timeout=5)[0] == "still\n"
    cluster.start_sshd("node2")
    assert ssh(cluster, "node1", "node2").stdout == "node2\n"


def wait_for(what: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)
