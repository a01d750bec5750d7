"""The bandwidth of groups of ranks: islands of NVLink, PCIe, network cards."""

from __future__ import annotations

from dataclasses import replace

from launcher.plan.cost.constants import PUBLISHED
from launcher.plan.cost.links import links_of
from launcher.plan.gpus import GPUS
from tests.unit.plan.cost.ideal import IDEAL, NIC_GBS, NVLINK_GBS, PCIE_GBS


def test_eight_gpus_on_nvlink_talk_at_its_speed_and_hosts_at_their_network_cards(gpu, links):
    """A ring over two hosts enters and leaves each of them once, on the network cards of all its members there."""
    assert links.neighbours(8, IDEAL) == NVLINK_GBS * 1e9
    assert links.neighbours(16, IDEAL) == 8 * NIC_GBS * 1e9
    assert links.strided(16, stride=1, constants=IDEAL) == 8 * NIC_GBS * 1e9
    assert links.strided(2, stride=8, constants=IDEAL) == NIC_GBS * 1e9
    assert links.strided(4, stride=4, constants=IDEAL) == 2 * NIC_GBS * 1e9
    assert links.network(IDEAL) == NIC_GBS * 1e9


def test_a_network_faster_than_nvlink_does_not_make_a_ring_faster_than_its_hosts(gpu):
    fast = links_of(replace(gpu, nic_gbs=50), host_gpus=8)
    assert fast.neighbours(16, IDEAL) == NVLINK_GBS * 1e9


def test_islands_of_nvlink_in_one_host_meet_over_pcie(gpu):
    """Two boards of four: a ring of eight crosses between them on four links, one of every second GPU on two."""
    boards = links_of(replace(gpu, nvlink_gpus=4), host_gpus=8)
    assert boards.neighbours(4, IDEAL) == NVLINK_GBS * 1e9
    assert boards.neighbours(8, IDEAL) == 4 * PCIE_GBS * 1e9
    assert boards.strided(8, stride=1, constants=IDEAL) == 4 * PCIE_GBS * 1e9
    assert boards.strided(4, stride=2, constants=IDEAL) == 2 * PCIE_GBS * 1e9
    assert boards.strided(2, stride=4, constants=IDEAL) == PCIE_GBS * 1e9


def test_without_nvlink_everything_in_a_host_goes_over_pcie(gpu):
    plain = links_of(replace(gpu, nvlink_gbs=0, nvlink_gpus=1), host_gpus=8)
    assert {plain.neighbours(members, IDEAL) for members in (1, 2, 8)} == {PCIE_GBS * 1e9}
    assert plain.hop(8, IDEAL) == PCIE_GBS * 1e9


def test_a_hop_goes_over_the_slowest_link_between_two_pipeline_stages(gpu, links):
    boards = links_of(replace(gpu, nvlink_gpus=4), host_gpus=8)
    assert [links.hop(world, IDEAL) / 1e9 for world in (8, 16)] == [NVLINK_GBS, NIC_GBS]
    assert [boards.hop(world, IDEAL) / 1e9 for world in (4, 8, 16)] == [NVLINK_GBS, PCIE_GBS, NIC_GBS]


def test_a_domain_of_nvlink_over_several_hosts_is_one_host_of_72():
    domain = links_of(GPUS["gb200-189gb"], host_gpus=4)
    assert domain.neighbours(64, IDEAL) == 900e9
    assert domain.neighbours(144, IDEAL) == min(900e9, 72 * 50e9)


def test_hosts_with_one_gpu_each_have_no_nvlink_between_them():
    links = links_of(GPUS["h100-80gb"], host_gpus=1)
    assert links.strided(8, stride=1, constants=PUBLISHED) <= links.network(PUBLISHED)
    assert links.hop(8, PUBLISHED) == links.network(PUBLISHED)


def test_an_exchange_across_hosts_leaves_through_the_own_card():
    """Of 31 others 24 are on other hosts: no ring's trick of entering a host once helps."""
    links = links_of(GPUS["h100-80gb"], host_gpus=8)
    assert links.exchange(8, PUBLISHED) == links.inside(PUBLISHED)
    assert links.exchange(32, PUBLISHED) < 1.5 * links.network(PUBLISHED)
