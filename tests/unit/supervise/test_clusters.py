"""Facts of hosts -> the machine that a plan is for."""

from __future__ import annotations

from dataclasses import replace

from launcher.spec.hosts import ClusterHost
from launcher.supervise.clusters import machine_from
from launcher.units import GIB
from tests.unit.hosts.conftest import WELL


def test_the_fullest_disk_counts_and_its_host_is_named():
    free = {"node1": 7 * GIB, "node2": 5 * GIB, "node3": 6 * GIB}
    facts = [replace(WELL, host=host, disk_free_bytes=bytes_) for host, bytes_ in free.items()]
    machine = machine_from(facts, [ClusterHost(host, (0,), "hosts:1:1") for host in free], written_bytes=GIB)
    assert (machine.disk_free_bytes, machine.disk_host) == (6 * GIB, "node2")
