"""What a fleet decides before the start; whole fleets run in tests/cluster."""

from __future__ import annotations

from launcher.backends.fleet_order import FleetOrder
from launcher.hosts.connection.link import Link
from launcher.hosts.connection.order import Order
from launcher.hosts.files.disk import CONTROLLER
from launcher.hosts.fleet.host import Host
from launcher.hosts.fleet.lead import Fleet
from launcher.rundir.folder import RunDir

READY = {"kind": "ready", "code": "ours", "disk": CONTROLLER, "flaw": None, "addr": "10.0.0.1", "port": 20000, "alive": []}


def fleet(tmp_path, *ready: dict[str, object]) -> Fleet:
    """One host of two ranks for each answer."""
    names = tuple(f"node{number + 1}" for number in range(len(ready)))
    order = FleetOrder(stage="sft", hosts=names, slots=2, agents=((),) * len(names), argv=(), env={}, secrets=())
    hosts = []
    for node, (name, answer) in enumerate(zip(names, ready, strict=True)):
        one = Order(
            token=str(tmp_path), attempt="a1", host=name, stage="sft", node=node, slots=2, argv=(), env={}, cwd="/", others=()
        )
        hosts.append(Host(Link(argv=(), order=one), ready={**READY, **answer}))
    return Fleet(run=RunDir(tmp_path), order=order, hosts=hosts, code="ours")


def test_a_host_with_other_sources_is_named(tmp_path):
    led = fleet(tmp_path, {}, {"code": "others"})
    led._refuse_unready()
    assert [host.problem and (host.problem.code, host.problem.where) for host in led.hosts] == [None, ("E420", "node2")]


def test_a_host_where_the_run_folder_cannot_be_made_is_named(tmp_path):
    led = fleet(tmp_path, {"flaw": "the run folder cannot be made: /runs: Read-only file system"}, {})
    led._refuse_unready()
    assert [host.problem and (host.problem.code, host.problem.where) for host in led.hosts] == [("E404", "node1"), None]


def test_one_rank_tends_each_disk_but_that_of_rank_0(tmp_path):
    disks = ("node1", CONTROLLER, CONTROLLER, "node4", "node4")
    led = fleet(tmp_path, *({"disk": disk} for disk in disks))
    led._go()
    assert [host.link._said[0]["go"]["tends"] for host in led.hosts] == [False, True, False, True, False]
    assert led.carrier.away is not None
    assert led.carrier.away.disks == {"node1": (0, 1), CONTROLLER: (2, 3, 4, 5), "node4": (6, 7, 8, 9)}
    assert led.carrier.away.others == ("node1", "node4")
    assert led.run.stage("sft").away.exists()


def test_a_marker_waits_until_what_it_stands_for_is_here(tmp_path):
    led = fleet(tmp_path, {"disk": "node1"})
    [host], stage = led.hosts, led.run.stage("sft")
    for rank in (0, 1):
        led._take(host, {"kind": "word", "file": f"done/rank{rank}.json", "at": 0, "text": "{}", "mtime_ns": 1})
    led._take(host, {"kind": "word", "file": "problems/rank0.json", "at": 0, "text": "{}", "mtime_ns": 1})
    assert led._all_done()
    assert not stage.done(0).exists()
    assert stage.problem(0).exists()


def test_a_host_whose_keeper_was_killed_is_named(tmp_path):
    led = fleet(tmp_path, {}, {})
    led._take(led.hosts[1], {"kind": "keeper.lost"})
    assert not led.hosts[1].over  # until what it held has ended
    led._take(led.hosts[1], {"kind": "ended", "code": 0})
    assert led._exit_code() == 4
    [problem] = [host.problem for host in led.hosts if host.problem]
    assert (problem.code, problem.where) == ("E417", "node2")


def test_who_has_left_counts_as_who_has_finished_and_every_host_is_asked(tmp_path):
    led = fleet(tmp_path, {"disk": "node1"}, {"disk": "node2"})
    led.hosts[1].code = 0
    led._ask_to_leave()
    assert [host.link._said for host in led.hosts] == [[{"leave": True}], []]
    for host in led.hosts:
        for rank in host.ranks:
            led._take(host, {"kind": "word", "file": f"leave/rank{rank}.json", "at": 0, "text": "{}", "mtime_ns": 1})
    led._take(led.hosts[0], {"kind": "word", "file": "leave/listening.json", "at": 0, "text": "{}", "mtime_ns": 1})
    assert led._all_done()
    assert not led.run.stage("sft").left(0).exists()
    assert led.run.stage("sft").listening.exists()
