"""Rates: how fast and how dear a machine is, from the catalogue, a calibration, or numbers of the job. DERIVE, pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from launcher.plan.cost.constants import PUBLISHED, Constants
from launcher.plan.cost.links import Links, links_of
from launcher.plan.cost.of_stage import Speeds
from launcher.plan.cost.price import Prices
from launcher.plan.cost.stack import OURS
from launcher.plan.gpus import GPUS, Gpu
from launcher.plan.plan import Machine

SHRINK = 2  # runs that a scale has to outweigh
# A core of a server CPU under torch, where nothing was measured: fp32 products, its share of the memory's bandwidth, ranks that
# talk over loopback.
CORE_TFLOPS, CORE_GBS, LOOPBACK_GBS, CORE_WATTS = 0.05, 8.0, 1.5, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Geometric mean of measured / predicted over finished runs of one GPU and precision."""

    time: float = 1.0
    memory: float = 1.0
    runs: int = 0

    def shrunk(self) -> Scale:
        """Drawn to 1 where there are few runs."""
        weight = self.runs / (self.runs + SHRINK)
        return Scale(time=self.time**weight, memory=self.memory**weight, runs=self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """`gpu` None: the speed of the device is not known, and no time is told."""

    gpu: Gpu | None
    links: Links | None
    constants: Constants = PUBLISHED
    prices: Prices = field(default_factory=Prices)
    calibration: str = "catalogue"
    scales: Mapping[str, Scale] = field(default_factory=dict)  # by precision

    def speeds(self, machine: Machine) -> Speeds | None:
        if self.gpu is None or self.links is None:
            return None
        return Speeds(gpu=self.gpu, links=self.links, stack=OURS, constants=self.constants, host_ranks=machine.slots)

    def scale(self, precision: str) -> Scale:
        return self.scales.get(precision, Scale()).shrunk()


def catalogue_rates(machine: Machine, *, gpu: Gpu | None = None, prices: Prices | None = None) -> Rates:
    """From the catalogue; `gpu`: the numbers of one that is not in it. A CPU rank is estimated from its cores."""
    if machine.device == "cpu":
        found: Gpu | None = cpu_device(cores=machine.cores / machine.slots, memory_bytes=machine.memory_bytes)
    else:
        found = gpu or GPUS.get(machine.gpu or "")
    links = _links_here(found, machine) if found else None
    return Rates(gpu=found, links=links, prices=prices or Prices())


def _links_here(gpu: Gpu, machine: Machine) -> Links:
    """The catalogue's links, but for what the machine tells of its own."""
    links = links_of(gpu, host_gpus=machine.slots)
    if machine.nvlink is False:
        links = replace(links, nvlink_gbs=0.0, nvlink_gpus=1)
    if machine.pcie_gbs is not None:
        links = replace(links, pcie_gbs=machine.pcie_gbs)
    return links if machine.network_gbs is None else replace(links, nic_gbs=machine.network_gbs / machine.slots)


def cpu_device(*, cores: float, memory_bytes: int, tflops: float | None = None, memory_gbs: float | None = None) -> Gpu:
    """A CPU rank as a device. What was not measured is estimated from its cores."""
    return Gpu(
        name="cpu",
        generation="cpu",
        usable_gib=memory_bytes / 2**30,
        tflops_16bit=tflops or CORE_TFLOPS * max(cores, 0.5),
        memory_gbs=memory_gbs or CORE_GBS * max(cores, 0.5),
        nvlink_gbs=0,
        nvlink_gpus=1,
        pcie_gbs=LOOPBACK_GBS,
        nic_gbs=LOOPBACK_GBS,
        multiprocessors=1,
        watts=CORE_WATTS * max(cores, 0.5),
        usd_per_hour=0.0,
    )
