"""Network cards as the kernel tells them: files like those below /sys, in a folder of the test."""

from __future__ import annotations

import pytest

from launcher.hosts.machine.networks import network_gbs


def card(root, name, *, speed, state="up", device=True):
    folder = root / "class" / "net" / name
    folder.mkdir(parents=True)
    (folder / "speed").write_text(f"{speed}\n")
    (folder / "operstate").write_text(f"{state}\n")
    if device:
        (folder / "device").mkdir()


def port(root, name, *, rate, state="4: ACTIVE"):
    folder = root / "class" / "infiniband" / name / "ports" / "1"
    folder.mkdir(parents=True)
    (folder / "rate").write_text(f"{rate}\n")
    (folder / "state").write_text(f"{state}\n")


def test_plain_cards_add_up(tmp_path):
    card(tmp_path, "eth0", speed=100_000)
    card(tmp_path, "eth1", speed=100_000)
    assert network_gbs(tmp_path) == 25


@pytest.mark.parametrize("change", [{"state": "down"}, {"device": False}, {"speed": -1}])
def test_cards_that_are_down_or_virtual_do_not_count(tmp_path, change):
    card(tmp_path, "eth0", **{"speed": 100_000, **change})
    assert network_gbs(tmp_path) is None


def test_infiniband_is_what_counts_where_there_is_some(tmp_path):
    card(tmp_path, "eth0", speed=10_000)
    port(tmp_path, "mlx5_0", rate="200 Gb/sec (4X HDR)")
    port(tmp_path, "mlx5_1", rate="200 Gb/sec (4X HDR)")
    port(tmp_path, "mlx5_2", rate="200 Gb/sec (4X HDR)", state="1: DOWN")
    assert network_gbs(tmp_path) == 50


def test_a_host_without_cards_tells_nothing(tmp_path):
    assert network_gbs(tmp_path) is None
