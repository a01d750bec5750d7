"""Facts of hosts that are well; a test changes the one that it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from launcher.hosts.checks.fitness import RANK_PACKAGES
from launcher.hosts.machine.facts import Door, HostFacts
from launcher.units import GIB

MakeFacts = Callable[..., HostFacts]
WELL = HostFacts(
    host="",
    name="",
    user="me",
    python="3.11.7",
    executable="/opt/venv/bin/python",
    system="Linux",
    packages={**dict.fromkeys(RANK_PACKAGES, "1.0"), "zerolaunch": "0.1.0", "numpy": "2.0"},
    code={"units.py": "aa", "errors.py": "bb"},
    cores=8,
    memory_bytes=64 * GIB,
    free_memory_bytes=60 * GIB,
    shm_bytes=32 * GIB,
    shm_free_bytes=32 * GIB,
    gpus=(),
    driver=None,
    network_gbs=None,
    fabric=False,
    interfaces=("lo", "eth0"),
    own_address="10.0.0.1",
    own_card="eth0",
    disk_free_bytes=500 * GIB,
    inodes_free=1_000_000,
    open_files=1024,
    locked_bytes=None,
)


@pytest.fixture
def facts() -> MakeFacts:
    """Of the host `node1`, or of the one that is named."""

    def of(host: str = "node1", **changed: object) -> HostFacts:
        return replace(WELL, host=host, name=host, **changed)  # type: ignore[arg-type]

    return of


def door(number: int) -> Door:
    return Door(host=f"node{number}", word=f"word{number}", address=f"10.0.0.{number}", port=20000 + number, interface="eth0")
