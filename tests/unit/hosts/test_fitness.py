"""Facts of one host -> what is wrong with it, with the remedy, and whether a run can start all the same."""

from __future__ import annotations

import pytest

from launcher.hosts.checks.fitness import host_symptoms, planned_symptoms
from launcher.hosts.checks.needs import Needs, cards_of
from launcher.hosts.machine.facts import HERE, GpuHealth, LeftRun
from launcher.hosts.machine.gpus import GpuFact
from launcher.units import GIB, MIB

H100 = GpuFact(number=0, uuid="GPU-0", name="H100", total_bytes=80 * GIB, free_bytes=70 * GIB, capability=(9, 0))
TWO = (H100, GpuFact(number=1, uuid="GPU-1", name="H100", total_bytes=80 * GIB, free_bytes=5 * GIB, capability=(9, 0)))
SOUND = GpuHealth(number=0, ecc_errors=0, failing=None, pids=())


def health(**changed: object) -> tuple[GpuHealth, ...]:
    known = {"number": 0, "ecc_errors": 0, "failing": None, "pids": ()}
    return (GpuHealth(**{**known, **changed}),)  # type: ignore[arg-type]


def shm(whole: int, free: int) -> dict[str, int]:
    return {"shm_bytes": whole, "shm_free_bytes": free}


def test_a_host_that_is_well_has_no_symptom(facts):
    assert host_symptoms(facts(gpus=TWO, health=(SOUND,)), Needs(slots=2, world=16)) == []


@pytest.mark.parametrize(
    ("changed", "needs", "code", "stops", "said"),
    [
        ({"packages": {}}, Needs(), "E407", True, "ssh node1 /opt/venv/bin/python -m pip install torch deepspeed"),
        ({"problems": ("no driver",)}, Needs(), "E410", True, "no driver"),
        ({"free_memory_bytes": GIB}, Needs(host_bytes=2 * GIB), "E409", True, "node1, host memory"),
        ({"gpus": TWO}, Needs(slots=2, gpu_bytes=6 * GIB), "E409", True, "node1, GPU 1"),
        ({"health": health(ecc_errors=3)}, Needs(), "E434", False, "GPU 0: 3 memory errors"),
        ({"health": health(failing="a row of its memory could not be replaced")}, Needs(), "E434", True, "replaced"),
        (
            {"health": health(failing="a row of its memory waits to be replaced at the next reset")},
            Needs(),
            "E434",
            False,
            "reset",
        ),
        ({"health": health(failing="it does not answer: lost")}, Needs(), "E434", True, "does not answer"),
        ({"health": health(pids=(17, 18))}, Needs(), "E434", False, "process 17, 18"),
        ({"disk_free_bytes": MIB}, Needs(), "E438", False, "1.0 MiB"),
        ({"inodes_free": 5_000}, Needs(), "E438", False, "5000 more files"),
        ({"inodes_free": 3}, Needs(), "E438", True, "3 more files"),
        ({}, Needs(world=512), "E429", False, "needs about 4608"),
        ({"fabric": True, "locked_bytes": 8 * MIB}, Needs(), "E429", False, "memlock unlimited"),
        ({"gpus": TWO, **shm(64 * MIB, 64 * MIB)}, Needs(slots=2), "E429", True, "--shm-size"),
        ({"gpus": TWO, **shm(512 * MIB, 512 * MIB)}, Needs(slots=2), "E429", False, "--shm-size"),
        ({"gpus": TWO, **shm(512 * MIB, 9 * MIB)}, Needs(slots=2), "E429", True, "9.0 MiB of 512.0 MiB are free in /dev/shm"),
        ({"gpus": TWO, **shm(16 * GIB, 9 * MIB)}, Needs(slots=2), "E429", True, "ls -l /dev/shm"),
        ({"gpus": TWO, **shm(16 * GIB, 512 * MIB)}, Needs(slots=2), "E429", False, "ls -l /dev/shm"),
        ({"unusable": {"/models/llama": "is not there"}}, Needs(), "E433", True, "/models/llama is not there"),
        ({}, Needs(interfaces=(("GLOO_SOCKET_IFNAME", "ib0"),)), "E439", True, "lo, eth0"),
        ({"left": (LeftRun(token="/runs/a/1", pids=(7, 8)),)}, Needs(), "E435", False, "ssh node1 kill 7 8"),
    ],
)
def test_each_fault_is_told_with_its_remedy(facts, changed, needs, code, stops, said):
    [found] = host_symptoms(facts(**changed), needs)
    assert (found.host, found.problem.code, found.stops) == ("node1", code, stops)
    assert said in found.problem.text()
    assert found.problem.hint


def test_every_disk_that_is_too_small_for_the_plan_is_told_of_its_host(facts):
    needs, hosts = Needs(disk_bytes=6 * GIB), [facts("node1", disk_free_bytes=6 * GIB), facts("node2", disk_free_bytes=5 * GIB)]
    found = planned_symptoms([*hosts, facts("node3", disk_free_bytes=GIB, share="missing")], needs)
    assert [(one.host, one.problem.code, one.stops) for one in found] == [("node2", "E211", True), ("node3", "E211", True)]
    assert found[0].problem.what == "6.0 GiB of checkpoints and artifacts, 5.0 GiB are free where they go"
    assert found[0].problem.hint.startswith("free 1.0 GiB there, or choose another folder")
    assert planned_symptoms(hosts, Needs()) == []


def test_a_shared_disk_that_is_too_small_is_told_once(facts):
    hosts = [facts(name, disk_free_bytes=GIB, share="seen") for name in ("node1", "node2")]
    assert [one.host for one in planned_symptoms(hosts, Needs(disk_bytes=2 * GIB))] == [HERE]


def test_one_gpu_or_none_needs_no_shared_memory(facts):
    """Ranks on CPUs send over sockets, and nothing loads data in processes of its own."""
    assert host_symptoms(facts(**shm(0, 0)), Needs(slots=8)) == []
    assert host_symptoms(facts(gpus=(H100,), **shm(0, 0)), Needs(slots=1)) == []


def test_a_run_that_somebody_controls_leaves_nothing(facts):
    busy = facts(left=(LeftRun(token="/runs/a/1", pids=(7,)),))
    assert host_symptoms(busy, Needs(), running={"/runs/a/1"}) == []


def test_on_this_machine_nothing_goes_over_ssh(facts):
    [found] = host_symptoms(facts(HERE, packages={}), Needs())
    assert found.problem.hint.startswith("/opt/venv/bin/python -m pip install")


def test_cards_are_read_as_nccl_and_gloo_read_them():
    assert cards_of("") == ()
    assert cards_of("eth0,eth1") == ("eth0", "eth1")
    assert cards_of("=eth0") == ("eth0",)
    assert cards_of("^docker0") == ()
