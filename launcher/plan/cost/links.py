"""Links: the bandwidth that a group of ranks has, from where its members sit. DERIVE, pure.

Tensor ranks are neighbours, then sequence ranks, then replicas; pipeline stages are farthest apart. A ring that crosses hosts
enters and leaves each host once, so a group with q members in a host has q network cards' worth of bandwidth; so it is with
the islands that NVLink joins inside a host, and PCIe.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.cost.constants import Constants
from launcher.plan.gpus import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Bandwidths in 1e9 bytes a second and one direction, for one GPU."""

    host_gpus: int  # GPUs of one host, or of one NVLink domain that spans hosts
    nvlink_gpus: int
    nvlink_gbs: float
    pcie_gbs: float
    nic_gbs: float

    def inside(self, constants: Constants) -> float:
        """Bytes a second of a ring inside one NVLink island; over PCIe where there is none."""
        if self.nvlink_gbs:
            return self.nvlink_gbs * 1e9 * constants.nvlink_share
        return self.pcie_gbs * 1e9 * constants.pcie_share

    def neighbours(self, members: int, constants: Constants) -> float:
        """Bytes a second of a ring of neighbours."""
        return self.strided(members, stride=1, constants=constants)

    def network(self, constants: Constants) -> float:
        """Bytes a second that one GPU sends to another host."""
        return self.nic_gbs * 1e9 * constants.nic_share

    def strided(self, members: int, *, stride: int, constants: Constants) -> float:
        """Bytes a second of a ring whose members are `stride` ranks apart: in one island, over PCIe, or across hosts."""
        best, reach = self.inside(constants), members * stride
        if reach <= self.nvlink_gpus:
            return best
        if reach <= self.host_gpus:
            together = max(1, min(members, self.nvlink_gpus // stride))
            return min(best, together * self.pcie_gbs * 1e9 * constants.pcie_share)
        together = max(1, min(members, self.host_gpus // stride))
        return min(best, together * self.network(constants))

    def exchange(self, members: int, constants: Constants) -> float:
        """Bytes a second of an all-to-all of neighbours: what goes to another host leaves through the GPU's own card."""
        inside = self.neighbours(min(members, self.host_gpus), constants)
        away = max(0, members - self.host_gpus) / max(1, members - 1)
        return 1 / ((1 - away) / inside + away / self.network(constants))

    def hop(self, world: int, constants: Constants) -> float:
        """Bytes a second from a GPU to its like in the next pipeline stage, where that is farthest away."""
        if world <= self.nvlink_gpus:
            return self.inside(constants)
        if world <= self.host_gpus:
            return min(self.inside(constants), self.pcie_gbs * 1e9 * constants.pcie_share)
        return self.network(constants)


def links_of(gpu: Gpu, *, host_gpus: int) -> Links:
    """The links of hosts with `host_gpus` such GPUs; an NVLink domain that spans hosts counts as one."""
    host = max(host_gpus, gpu.nvlink_gpus if gpu.nvlink_gpus > 8 else 1)
    return Links(
        host_gpus=host,
        nvlink_gpus=min(gpu.nvlink_gpus, host),
        nvlink_gbs=gpu.nvlink_gbs,
        pcie_gbs=gpu.pcie_gbs,
        nic_gbs=gpu.nic_gbs,
    )
