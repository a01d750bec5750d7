"""`launcher doctor` with real hosts: each fault is found within 10 s, and told with its host and its remedy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

import launcher
from tests.cluster.remote import STAGE, Remote
from tests.cluster.world import LOGIN, Cluster

FOUND_WITHIN_S = 10.0
PRETRAIN = [{**STAGE, "kind": "pretrain"}]


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with Cluster(hosts=2, login=True, private=("/srv",)) as cluster:
        remote = Remote(cluster, tmp_path)
        remote.write_job(PRETRAIN)
        yield remote


def told(remote: Remote, *words: str, **env: str) -> tuple[int, dict[str, list[dict[str, object]]]]:
    """(Exit code, host -> what is said of it), of what is asked before any rank starts."""
    began_s = time.monotonic()
    code, out, err = remote("doctor", "job.yaml", "--no-rendezvous", "--json", *words, **env)
    assert time.monotonic() - began_s < FOUND_WITHIN_S
    assert "Traceback" not in err
    found = json.loads(out)
    return code, {host["host"]: host["problems"] for host in found["hosts"]} | {"": found["other_problems"]}


def of_node2(remote: Remote, *words: str, **env: str) -> list[tuple[object, str]]:
    """(Code, text with its hint) of what is said of node2, where nothing is said of the others and the run is stopped."""
    code, problems = told(remote, *words, **env)
    assert code == 4
    assert problems.pop("") == []
    found = problems.pop("node2")
    assert all(not any(problem["stops"] for problem in others) for others in problems.values()), problems
    return [(problem["code"], f"{problem['what']}\n{problem['hint']}") for problem in found if problem["stops"]]


def test_hosts_that_are_alike_are_ready_and_their_ranks_meet(remote: Remote) -> None:
    code, out, err = remote("doctor", "job.yaml", "--json")
    assert code == 0, out + err
    found = json.loads(out)
    assert found["ready"]
    said = [problem["code"] for host in found["hosts"] for problem in host["problems"]]
    assert set(said) <= {"E437"}  # two hosts on a few busy cores: one may have sent at half the speed of the other
    assert [host["address"] for host in found["hosts"]] == ["10.77.0.11", "10.77.0.12"]
    assert [host["interface"] for host in found["hosts"]] == ["eth0", "eth0"]
    assert found["rendezvous"]["world"] == 2
    assert found["rendezvous"]["all_gbs"] > 0
    assert all(host["sent_gbs"] > 0 for host in found["hosts"])
    assert list((remote.folder / "runs").iterdir()) == []
    assert not any(remote.processes(name, carry="LAUNCHER_RUN=") for name in remote.cluster.names)


def test_hosts_need_no_job(remote: Remote) -> None:
    code, out, err = remote("doctor", "--hosts", "node1", "node2", "--no-rendezvous")
    # without a job there is no cluster.python, and the one that runs here may have another checkout
    assert code in (0, 4)
    assert "Traceback" not in err
    assert "node1" in out


def test_a_changed_host_key(remote: Remote) -> None:
    known = remote.cluster.ssh_folder(LOGIN) / "known_hosts"
    lines = known.read_text().splitlines()
    keys = {line.split()[0].split(",")[0]: line.split(maxsplit=1)[1] for line in lines}
    known.write_text("".join(f"{name} {keys['node1' if name == 'node2' else name]}\n" for name in keys))
    [(code, text)] = of_node2(remote)
    assert code == "E418"
    assert "ssh-keygen -R node2" in text


def test_an_unknown_host_key(remote: Remote) -> None:
    known = remote.cluster.ssh_folder(LOGIN) / "known_hosts"
    known.write_text("".join(line for line in known.read_text().splitlines(keepends=True) if not line.startswith("node2,")))
    [(code, text)] = of_node2(remote)
    assert code == "E418"
    assert "ssh-keyscan node2" in text


def test_a_refused_key(remote: Remote) -> None:
    (remote.cluster.ssh_folder("node2") / "authorized_keys").write_text("")
    [(code, text)] = of_node2(remote)
    assert code == "E419"
    assert "ssh-copy-id node2" in text


def test_an_unknown_name(remote: Remote) -> None:
    (remote.folder / "hosts").write_text("node1 slots=1\nnode9 slots=1\n")
    code, problems = told(remote)
    [problem] = problems["node9"]
    assert (code, problem["code"]) == (4, "E417")
    assert "hostfile" in str(problem["hint"])


def test_more_slots_than_a_host_has_cores(remote: Remote) -> None:
    (remote.folder / "hosts").write_text("node1 slots=900\nnode2 slots=900\n")
    code, problems = told(remote, "--set", "batch.global=1800")
    assert code == 4
    assert [[problem["code"] for problem in problems[host]] for host in ("node1", "node2")] == [["E402"], ["E402"]]
    assert str(problems["node2"][0]["hint"]).startswith("write slots=")


def test_no_sshd(remote: Remote) -> None:
    remote.cluster.stop_sshd("node2")
    [(code, text)] = of_node2(remote)
    assert code == "E417"
    assert "start sshd" in text


@pytest.mark.needs("nft")
def test_silence_on_the_port_of_ssh(remote: Remote) -> None:
    remote.cluster.filter("node2", 22)
    [(code, text)] = of_node2(remote)
    assert code == "E417"
    assert "firewall" in text


def test_another_version_of_deepspeed(remote: Remote) -> None:
    installed = distribution("deepspeed")
    version, metadata = installed.version, Path(str(installed.locate_file(f"deepspeed-{installed.version}.dist-info/METADATA")))
    other = remote.folder / "METADATA"
    other.write_text(metadata.read_text().replace(f"Version: {version}", "Version: 0.17.6", 1))
    remote.cluster.overlay("node2", metadata, other)
    [(code, said)] = of_node2(remote)
    assert code == "E425"
    assert f"deepspeed 0.17.6, usual is {version}" in said
    assert f"pip install deepspeed=={version}" in said


def test_another_python(remote: Remote) -> None:
    """node2's says of itself that it is another one. Another last number alone would only warn."""
    main = remote.folder / "main.py"
    main.write_text(
        "import sys\nfrom launcher.hosts.__main__ import main\nsys.version = '3.12.1 (main)'\nsys.exit(main(['agent']))\n"
    )
    other = remote.folder / "other"
    other.write_text(f"#!/bin/sh\nPYTHONPATH={Path(launcher.__file__).parent.parent} exec {sys.executable} -P {main}\n")
    other.chmod(0o755)
    remote.cluster.overlay("node2", remote.python(), other)
    [(code, said)] = of_node2(remote)
    assert code == "E425"
    assert "Python 3.12.1" in said
    assert "cluster.python" in said


def test_other_code(remote: Remote) -> None:
    units = Path(launcher.__file__).parent / "units.py"
    other = remote.folder / "units.py"
    other.write_text(units.read_text() + "\n# changed\n")
    remote.cluster.overlay("node2", units, other)
    [(code, said)] = of_node2(remote)
    assert code == "E426"
    assert "launcher/units.py" in said


@pytest.mark.needs("libfaketime")
def test_a_clock_that_is_behind(remote: Remote) -> None:
    remote.cluster.set_clock("node2", -20)
    [(code, said)] = of_node2(remote)
    assert code == "E428"
    assert said.startswith(("its clock is 20.", "its clock is 19."))
    assert "behind" in said


@pytest.mark.needs("libfaketime")
def test_a_clock_that_is_a_little_off_is_only_said(remote: Remote) -> None:
    remote.cluster.set_clock("node2", 4)
    code, problems = told(remote)
    [problem] = problems["node2"]
    assert (code, problem["code"], problem["stops"]) == (0, "E428", False)


def test_a_folder_that_is_not_shared_is_only_said(remote: Remote) -> None:
    code, problems = told(remote, "--runs", "/srv")
    assert code == 0
    assert [[problem["code"] for problem in problems[host]] for host in ("node1", "node2")] == [["E432"], ["E432"]]
    assert "--runs" in str(problems["node2"][0]["hint"])
    assert list(remote.cluster.disk(LOGIN, "/srv").iterdir()) == []


def test_a_disk_that_is_too_small_for_the_plan(remote: Remote) -> None:
    remote.cluster.out("node2", ["mount", "-t", "tmpfs", "-o", "size=256k", "none", "/srv"])
    [(code, said)] = of_node2(remote, "--runs", "/srv")
    assert code == "E211"
    assert "of checkpoints and artifacts, 256.0 KiB are free where they go" in said
    code_of_run, _, err = remote("run", "job.yaml", "--runs", "/srv")
    assert code_of_run != 0
    assert "256.0 KiB are free where the run folder lies on node2" in err


@pytest.mark.needs("nft")
def test_a_firewall_between_the_hosts(remote: Remote) -> None:
    remote.cluster.filter("node2", "20000-32000")
    [(code, said)] = of_node2(remote)
    assert code == "E430"
    assert "is not reached by node1: 10.77.0.12 port" in said
    assert "firewall" in said


def names_on(remote: Remote, host: str, change: Callable[[str], str]) -> None:
    path = remote.cluster.etc_hosts(host)
    path.write_text(change(path.read_text()))


def test_a_name_that_leads_to_the_host_itself(remote: Remote) -> None:
    names_on(remote, "node2", lambda text: text.replace("10.77.0.11 node1", "127.0.0.1 node1"))
    [(code, said)] = of_node2(remote)
    assert code == "E431"
    assert "there the name node1 leads to 127.0.0.1, which is node2 itself" in said
    assert "/etc/hosts" in said


def test_a_name_that_leads_to_another_host(tmp_path: Path) -> None:
    with Cluster(hosts=3, login=True) as cluster:
        remote = Remote(cluster, tmp_path)
        remote.write_job(PRETRAIN)
        names_on(remote, "node2", lambda text: text.replace("10.77.0.11 node1", "10.77.0.13 node1"))
        [(code, said)] = of_node2(remote, "--set", "batch.global=9")
    assert code == "E431"
    assert "there the name node1 leads to 10.77.0.13, where that host is not met" in said


def test_a_host_whose_own_name_leads_to_itself_alone(remote: Remote) -> None:
    names_on(remote, "node2", lambda text: text.replace("10.77.0.12 node2", "127.0.1.1 node2"))
    [(code, said)] = of_node2(remote)
    assert code == "E431"
    assert "its own name node2 leads to 127.0.1.1" in said
    assert "`GLOO_SOCKET_IFNAME: eth0`" in said
    code_with_card, problems = told(remote, "--set", "cluster.env.GLOO_SOCKET_IFNAME=eth0")
    assert (code_with_card, problems["node2"]) == (0, [])


def test_a_host_whose_own_name_leads_to_a_second_network(tmp_path: Path) -> None:
    """gloo goes there. It is only said while the others reach the host on it."""
    with Cluster(hosts=2, login=True, networks=2) as cluster:
        remote = Remote(cluster, tmp_path)
        remote.write_job(PRETRAIN)
        names_on(remote, "node2", lambda text: text.replace("10.77.0.12 node2", "10.78.0.12 node2"))
        code, problems = told(remote)
        [problem] = problems["node2"]
        assert (code, problem["code"], problem["stops"]) == (0, "E431", False)
        cluster.cable("node2", up=False, network_number=1)
        [(stopped, said)] = of_node2(remote)
    assert stopped == "E431"
    assert "its own name node2 leads to 10.78.0.12 (eth1), where it is not reached by node1" in said
    assert "`GLOO_SOCKET_IFNAME: eth0`" in said


def test_one_machine_by_name_and_by_address(remote: Remote) -> None:
    """`run` would wait for ranks that never start: both links would have the same keeper."""
    (remote.folder / "hosts").write_text("node1 slots=1\n10.77.0.11 slots=1\n")
    code, problems = told(remote)
    assert (code, problems["node1"]) == (4, [])
    [problem] = problems["10.77.0.11"]
    assert (problem["code"], problem["stops"]) == ("E431", True)
    assert problem["what"] == "is the same machine as node1: both names lead there"
    assert "name each machine once" in str(problem["hint"])
    code, _, err = remote("run", "job.yaml")
    assert code == 4
    assert "10.77.0.11 [E431] is the same machine as node1" in err
    assert list((remote.folder / "runs").glob("*/*")) == []


def test_what_an_earlier_run_left_is_told_and_not_ended(remote: Remote) -> None:
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    left = remote.cluster.start("node2", ["sleep", "600"], env={"LAUNCHER_RUN": "/nfs/runs/job/1"}, **pipes)
    code, problems = told(remote)
    [problem] = problems["node2"]
    assert (code, problem["code"], problem["stops"]) == (0, "E435", False)
    assert "/nfs/runs/job/1" in str(problem["what"])
    assert "ssh node2 kill " in str(problem["hint"])
    assert left.poll() is None
    left.kill()
    left.wait()


def test_everything_is_told_at_once_and_a_run_is_refused_for_the_same(remote: Remote) -> None:
    remote.cluster.stop_sshd("node1")
    units = Path(launcher.__file__).parent / "units.py"
    (remote.folder / "units.py").write_text(units.read_text() + "\n")
    remote.cluster.overlay("node2", units, remote.folder / "units.py")
    code, problems = told(remote)
    assert code == 4
    assert [problem["code"] for problem in problems["node1"]] == ["E417"]
    assert [problem["code"] for problem in problems["node2"]] == ["E426"]
    code, out, err = remote("doctor", "job.yaml", "--no-rendezvous")
    assert code == 4
    table = out + err
    assert re.search(r"^node1 +not reached", table, re.M), table
    assert re.search(r"^node2 ", table, re.M), table
    assert all(word in table for word in ("node1 [E417]", "start sshd", "node2 [E426]", "launcher/units.py"))
    remote.cluster.start_sshd("node1")
    code, _, err = remote("run", "job.yaml")
    assert code == 4
    assert "node2 [E426]" in err
    assert list((remote.folder / "runs").glob("*/*")) == []


@pytest.mark.needs("tc")
def test_a_slow_link_is_told_when_the_ranks_meet(remote: Remote) -> None:
    remote.cluster.slow("node2", 4000)
    code, out, err = remote("doctor", "job.yaml", "--json")
    assert code == 0, out + err
    node1, node2 = json.loads(out)["hosts"]
    assert node1["problems"] == []
    [problem] = node2["problems"]
    assert (problem["code"], problem["stops"]) == ("E437", False)
    assert node2["sent_gbs"] < 0.001 < node1["sent_gbs"]
