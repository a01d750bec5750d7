"""The test cluster itself: each thing that other tests rely on, done once for real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.needs import LIBFAKETIME, SLURM, missing, refused
from tests.cluster.slurm import slurm
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
    with Cluster(hosts=2, ssh=("ServerAliveInterval 1", "ServerAliveCountMax 3")) as cluster:
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


@pytest.mark.needs("nft", "tc", "ping")
def test_one_direction_may_be_lost(cluster: Cluster) -> None:
    receive = "import socket; s = socket.socket(2, 2); s.bind(('', 7)); s.settimeout({})\n"
    receive += "print('there', flush=True); print(s.recv(9))"
    send = "import socket; socket.socket(2, 2).sendto(b'x', ('{}', 7))"

    def arrives(sender: str, receiver: str, wait_s: float) -> bool:
        process = cluster.start(
            receiver, [PYTHON, "-Sc", receive.format(wait_s)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        cluster.out(sender, [PYTHON, "-Sc", send.format(cluster.address(receiver))])
        return process.communicate(timeout=10)[0] == "b'x'\n"

    cluster.out("node1", ["ping", "-c1", "-W2", "node2"])  # addresses are known: only the test's packets are lost
    cluster.deaf("node1", "node2")
    assert arrives("node1", "node2", 5)
    assert not arrives("node2", "node1", 0.3)
    cluster.heal("node1")
    assert arrives("node2", "node1", 5)


@pytest.mark.needs("nft", "tc")
def test_a_port_may_be_filtered_on_a_host_that_lives(cluster: Cluster) -> None:
    cluster.filter("node2", 22)
    assert "timed out" in ssh(cluster, "node1", "node2", "-oConnectTimeout=1").stderr
    assert "refused" in ssh(cluster, "node1", "node2", "-p23").stderr
    cluster.heal("node2")
    assert ssh(cluster, "node1", "node2").stdout == "node2\n"


@pytest.mark.needs("nft", "tc")
def test_a_link_may_be_slow(cluster: Cluster) -> None:
    def seconds() -> float:
        started = time.monotonic()
        assert len(cluster.out("node1", ["ssh", "node2", "head -c 200000 /dev/zero | tr '\\0' x"])) == 200_000
        return time.monotonic() - started

    cluster.slow("node2", 1000)
    assert seconds() > 1.0  # 1.6 Mbit, a quarter of a Mbit of it at once
    cluster.heal("node2")
    assert ssh(cluster, "node1", "node2").stdout == "node2\n"


def test_a_host_may_have_two_networks() -> None:
    with Cluster(hosts=2, networks=2) as cluster:
        cluster.cable("node2", up=False)
        assert ssh(cluster, "node1", cluster.address("node2", 1)).stdout == "node2\n"
        cluster.cable("node2", up=False, network_number=1)
        cluster.cable("node2", up=True)
        assert ssh(cluster, "node1", "node2").stdout == "node2\n"
        assert cluster.out("node1", ["ip", "-brief", "address"]).count("/24") == 2


@pytest.mark.needs(LIBFAKETIME)
def test_a_clock_may_be_wrong(cluster: Cluster, tmp_path: Path) -> None:
    ask = f"{PYTHON} -Sc 'import time; print(time.time(), time.monotonic())'"

    def offset_s(*argv: str) -> float:
        wall, monotonic = (float(word) for word in cluster.out("node1", argv).split())
        assert abs(monotonic - time.monotonic()) < 60
        return wall - time.time()

    cluster.set_clock("node2", 3600)
    cluster.set_clock("node1", -7200)
    for _ in range(2):
        assert abs(offset_s("ssh", "node2", ask) - 3600) < 60
        assert abs(offset_s("sh", "-c", ask) + 7200) < 60
        assert abs(offset_s("env", "-i", "sh", "-c", ask)) < 60
        cluster.crash("node2")
        cluster.boot("node2")
    cluster.out("node2", ["touch", str(tmp_path / "file")])
    assert abs((tmp_path / "file").stat().st_mtime - time.time()) < 60


# --- launchers and SLURM --------------------------------------------------------------------------------------------------


def test_a_login_host_starts_jobs_and_has_no_ranks() -> None:
    with Cluster(hosts=2, login=True) as cluster:
        assert cluster.nodes == ["node1", "node2"]
        assert ssh(cluster, "login", "node2").stdout == "node2\n"
        assert "login" not in cluster.hostfile()
        assert cluster.out("login", ["ssh", "-tt", "node1", "tty"]).startswith("/dev/pts/")


@pytest.mark.needs("pdsh", "mpirun")
def test_pdsh_and_mpirun_reach_all_hosts(cluster: Cluster) -> None:
    assert sorted(cluster.out("node1", ["pdsh", "-R", "ssh", "-w", "node[1-2]", "hostname"]).splitlines()) == [
        "node1: node1",
        "node2: node2",
    ]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    said = cluster.out("node1", ["mpirun", "-np", "2", "--host", "node1,node2", "hostname"], env=root)
    assert sorted(said.splitlines()) == ["node1", "node2"]


@pytest.mark.needs(*SLURM)
def test_slurm_runs_jobs_on_the_hosts_and_goes_away() -> None:
    with Cluster(hosts=2, login=True) as cluster:
        with slurm(cluster, gpus=2) as queue:
            assert sorted(cluster.out("login", ["srun", "-N2", "hostname"]).splitlines()) == ["node1", "node2"]
            assert cluster.run("login", ["srun", "-N2", "--gpus-per-node=3", "--immediate=1", "true"]).returncode == 1
            said = cluster.out("login", ["srun", "-N2", "--gpus-per-node=2", "sh", "-c", "echo $SLURM_GPUS_ON_NODE"])
            assert said == "2\n2"
            assert queue.completions().count("JobState=COMPLETED") == 2
            queue.wait_until_idle("node2")
            cluster.crash("node2")
            cluster.boot("node2")
            queue.boot("node2")
            queue.wait_until_idle("node2")
            assert cluster.out("login", ["srun", "-w", "node2", "hostname"]) == "node2"
        for name in cluster.names:
            assert cluster.run(name, ["pgrep", "-l", "slurm|munge|srun"]).stdout == ""
            assert cluster.run(name, ["ls", "/etc/slurm/slurm.conf"]).returncode == 2


# --- what is left, and what is missing ------------------------------------------------------------------------------------

KILLED = """
import sys, time
from tests.cluster.world import Cluster
from tests.cluster.test_the_test_cluster import pid_namespaces
cluster = Cluster(hosts=2, private=("/srv",))
cluster.__enter__()
session = cluster.start("node1", ["ssh", "node2", "sleep 1000"])
print(*pid_namespaces(cluster), flush=True)
time.sleep(60)
"""


def pid_namespaces(cluster: Cluster) -> set[str]:
    """Of the room and all hosts."""
    pids = [cluster.out(name, ["readlink", "/proc/self/ns/pid"]) for name in cluster.names]
    return {*pids, os.readlink(f"/proc/{cluster.folder.parts[2]}/ns/pid")}


def processes_in(namespaces: set[str]) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") in namespaces:
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue  # it has ended
    return found


def traces() -> dict[str, object]:
    """What a cluster might leave on this machine."""
    home = Path.home()
    return {
        "mounts": Path("/proc/self/mounts").read_text(),
        "netns": sorted(os.listdir("/run/netns")) if Path("/run/netns").exists() else None,
        "links": sorted(os.listdir("/sys/class/net")),
        "run": sorted(os.listdir("/run")),
        "srv": sorted(os.listdir("/srv")),
        "~/.ssh": sorted(os.listdir(home / ".ssh")) if (home / ".ssh").exists() else None,
    }


def test_nothing_is_left_behind_and_clusters_do_not_meet() -> None:
    before = traces()
    with Cluster(hosts=4, private=("/srv",)) as one, Cluster(hosts=2) as other:
        assert one.address("node2") == other.address("node2")
        other.crash("node2")
        assert ssh(one, "node1", "node2").stdout == "node2\n"
        one.start("node1", ["ssh", "node4", "sleep 1000"])
        namespaces = pid_namespaces(one) | {other.out("node1", ["readlink", "/proc/self/ns/pid"])}
        assert len(namespaces) == 6
        assert len(processes_in(namespaces)) > 10
    assert processes_in(namespaces) == []
    assert traces() == before


def test_a_killed_test_takes_its_cluster_along() -> None:
    before = traces()
    killed = subprocess.Popen([PYTHON, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    namespaces = set(killed.stdout.readline().split())
    assert len(namespaces) == 3
    assert len(processes_in(namespaces)) > 6
    killed.kill()
    killed.communicate()
    wait_for(lambda: processes_in(namespaces) == [])
    assert traces() == before


def test_a_host_that_cannot_boot_says_why(cluster: Cluster, tmp_path: Path) -> None:
    cluster.crash("node2")
    cluster.overlay("node2", "/no/such/place", tmp_path)
    with pytest.raises(HostError, match=r"node2 does not come up: mount: /no/such/place"):
        cluster.boot("node2")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing() == ""
    there = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **how: None if name in {"sshd", "nft"} else there(name, **how))
    get = "get it by: apt-get install --no-install-recommends"
    assert missing() == f"missing here: openssh-server; {get} openssh-server"
    assert missing("nft", "tc") == f"missing here: nftables openssh-server; {get} nftables openssh-server"
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused.cache_clear()
    assert missing() == "missing here: root, to make namespaces (on a machine of your own: sudo make test-cluster)"
    refused.cache_clear()


def wait_for(what: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)
