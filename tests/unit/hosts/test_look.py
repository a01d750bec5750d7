"""What a host says of itself, and that saying it costs little."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.hosts.checks.ask import facts_from
from launcher.hosts.checks.visit import _reply
from launcher.hosts.machine import health
from launcher.hosts.machine.facts import GpuHealth
from launcher.hosts.machine.identity import machine_id
from launcher.hosts.machine.installed import installed_packages, normalised
from launcher.hosts.machine.leftovers import find_runs_alive
from launcher.hosts.machine.look import READ, WRITE, _own_address, look

# Each costs a cold Python 5 to 100 ms, on every host at once.
HEAVY = (
    "pydantic",
    "importlib.metadata",
    "email",
    "subprocess",
    "asyncio",
    "logging",
    "concurrent.futures",
    "yaml",
    "launcher.plan",
)


def test_a_visit_imports_little():
    modules = "launcher.hosts.__main__, launcher.hosts.fleet.agent, launcher.hosts.checks.visit"
    script = f"import sys, {modules}\nprint([m for m in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert [name for name in HEAVY if f"'{name}'" in done.stdout] == []


def test_every_package_is_told_with_the_version_that_python_tells():
    told = installed_packages()
    slow = {normalised(one.metadata["Name"]): one.version for one in importlib.metadata.distributions()}
    assert told == slow


def test_a_half_removed_package_says_so(tmp_path):
    (tmp_path / "half-1.0.dist-info").mkdir()
    (tmp_path / "Old_Kind-2.0.egg-info").write_text("Metadata-Version: 1\nVersion: 2.0\n")
    assert installed_packages([str(tmp_path), str(tmp_path / "none")]) == {"half": "damaged", "old-kind": "2.0"}


def test_facts_come_back_from_their_line_as_they_were(tmp_path):
    facts = look("node1", folder=tmp_path / "not" / "yet", environ={})
    line = json.dumps(_reply({"do": "look", "host": "node1", "folder": str(tmp_path)}))
    back = facts_from(json.loads(line))
    assert (back.host, back.user, back.packages, back.code) == (facts.host, facts.user, facts.packages, facts.code)
    assert "units.py" in back.code


def test_paths_that_ranks_would_use_are_tried(tmp_path):
    (tmp_path / "model").mkdir()
    gone = str(tmp_path / "gone")
    facts = look(
        "node1", folder=tmp_path, paths=[(str(tmp_path / "model"), READ), (gone, READ), (str(tmp_path), WRITE)], environ={}
    )
    assert facts.unusable == {gone: "is not there"}


def test_a_disk_of_its_own_needs_no_model_but_what_ranks_write(tmp_path):
    gone = str(tmp_path / "gone")
    assert look("n", folder=tmp_path, paths=[(gone, READ)], share="missing", environ={}).unusable == {}
    assert look("n", folder=tmp_path, paths=[(gone, WRITE)], share="missing", environ={}).unusable == {gone: "is not there"}


def test_a_file_of_the_control_side_is_answered_beside_it(tmp_path):
    (tmp_path / "here").write_text("a secret")
    share = {"theirs": str(tmp_path / "here"), "ours": str(tmp_path / "host0"), "text": "a secret"}
    reply = _reply({"do": "look", "host": "node1", "folder": str(tmp_path), "share": share})
    assert reply["share"] == "seen"
    assert (tmp_path / "host0").read_text() == "a secret"


def test_a_machine_is_told_apart_by_its_boot_and_its_namespaces(tmp_path):
    """As two containers on one kernel, and one that is asked twice."""

    def proc(name: str, network: int) -> Path:
        folder = tmp_path / name
        (folder / "self/ns").mkdir(parents=True)
        (folder / "sys/kernel/random").mkdir(parents=True)
        (folder / "sys/kernel/random/boot_id").write_text("b007\n")
        for space, number in (("net", network), ("pid", 2), ("uts", 3)):
            (folder / "self/ns" / space).symlink_to(f"{space}:[{number}]")
        return folder

    one, again, other = (machine_id(proc(name, network)) for name, network in (("a", 1), ("b", 1), ("c", 9)))
    assert one == again != other
    assert machine_id(tmp_path / "none") == ""
    assert machine_id() == machine_id() != ""


def test_an_own_name_leads_to_the_first_address_that_is_the_hosts_own(monkeypatch):
    """As gloo takes it: what cannot be bound, such as the address of a router in front of the host, is passed over."""
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, 0)) for place in ("192.0.2.1", "127.0.0.3", "127.0.0.4")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    assert _own_address() == "127.0.0.3"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places[:1])
    assert _own_address() is None


def test_processes_of_runs_are_found_by_their_token(tmp_path):
    token = str(tmp_path)
    with subprocess.Popen(["sleep", "60"], env={"LAUNCHER_RUN": token}) as child:
        found = [run for run in find_runs_alive() if run.token == token]
        child.kill()
    assert [run.pids for run in found] == [(child.pid,)]


class Nvml(SimpleNamespace):
    """As much of pynvml as health asks."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0

    def _refuse(self, *_: object) -> None:
        raise self.NVMLError("not supported")

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        return (lambda *_: 0) if name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByIndex") else self._refuse


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, GpuHealth(number=3, ecc_errors=None, failing=None, pids=())),
        (
            {
                "nvmlDeviceGetTotalEccErrors": lambda *_: 2,
                "nvmlDeviceGetComputeRunningProcesses": lambda _: [SimpleNamespace(pid=17)],
            },
            GpuHealth(number=3, ecc_errors=2, failing=None, pids=(17,)),
        ),
        (
            {"nvmlDeviceGetRemappedRows": lambda _: [0, 1, 0, 1]},
            GpuHealth(number=3, ecc_errors=None, failing="a row of its memory could not be replaced", pids=()),
        ),
        (
            {"nvmlDeviceGetRetiredPagesPendingStatus": lambda _: 1},
            GpuHealth(number=3, ecc_errors=None, failing="a page of its memory waits to be retired at the next reset", pids=()),
        ),
    ],
)
def test_the_health_of_a_gpu_as_the_driver_tells_it(monkeypatch, told, expected):
    monkeypatch.setattr(health, "load_nvml", lambda: Nvml(**told))
    assert health.find_health([3]) == (expected,)


def test_nobody_asks_the_driver_of_a_host_without_gpus(monkeypatch):
    monkeypatch.setattr(health, "load_nvml", lambda: pytest.fail("asked"))
    assert health.find_health([]) == ()
