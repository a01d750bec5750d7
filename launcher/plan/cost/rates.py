"""Rates: how fast and how dear a machine is, from the catalogue, a calibration, or numbers of the job. DERIVE, pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import exp, log

from launcher.plan.cost.constants import CPU, PUBLISHED, Constants
from launcher.plan.cost.links import Links, links_of
from launcher.plan.cost.of_stage import Speeds
from launcher.plan.cost.price import Prices
from launcher.plan.cost.stack import OURS
from launcher.plan.gpus import GPUS, Gpu
from launcher.plan.plan import Machine

SHRINK = 2  # runs that a scale has to outweigh
# What a finished stage can say of the plan: more is a run that was disturbed, or a plan that was wrong about something else.
TIME_BOUNDS, MEMORY_BOUNDS = (0.1, 10.0), (0.5, 2.0)
MOST_RUNS = 1_000_000
# A core of a server CPU under torch, where nothing was measured: fp32 products, its share of the memory's bandwidth, ranks that
# talk over loopback.
CORE_TFLOPS, CORE_GBS, LOOPBACK_GBS, CORE_WATTS = 0.05, 8.0, 0.8, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Geometric means of measured / predicted over finished stages of one device and precision."""

    time: float = 1.0
    memory: float = 1.0
    runs: int = 0  # that the time stands on
    memory_runs: int = 0

    def shrunk(self) -> Scale:
        """Drawn to 1 where there are few runs."""
        return replace(self, time=_drawn(self.time, self.runs), memory=_drawn(self.memory, self.memory_runs))

    def with_time(self, ratio: float) -> Scale:
        """After one more stage."""
        mean = _mean(self.time, self.runs, _within(ratio, TIME_BOUNDS))
        return replace(self, time=_within(mean, TIME_BOUNDS), runs=self.runs + 1)

    def with_memory(self, ratio: float) -> Scale:
        mean = _mean(self.memory, self.memory_runs, _within(ratio, MEMORY_BOUNDS))
        return replace(self, memory=_within(mean, MEMORY_BOUNDS), memory_runs=self.memory_runs + 1)


def _drawn(mean: float, runs: int) -> float:
    return float(mean ** (runs / (runs + SHRINK)))


def _mean(mean: float, runs: int, ratio: float) -> float:
    return exp((runs * log(mean) + log(ratio)) / (runs + 1))


def _within(ratio: float, bounds: tuple[float, float]) -> float:
    return min(bounds[1], max(bounds[0], ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """`gpu` None: the speed of the device is not known, and no time is told."""

    gpu: Gpu | None
    links: Links | None
    constants: Constants = PUBLISHED
    prices: Prices = field(default_factory=Prices)
    calibration: str = "catalogue"
    basis: str = "catalogue"  # names the numbers that scales were made with: this, or when they were measured
    peak_tflops: float | None = None  # what MFU counts as all; None: the GPU's own
    scales: Mapping[str, Scale] = field(default_factory=dict)  # by precision
    disturbed: float = 0.0  # share of the cores that other programs took while the speeds were measured

    def speeds(self, machine: Machine) -> Speeds | None:
        if self.gpu is None or self.links is None:
            return None
        return Speeds(gpu=self.gpu, links=self.links, stack=OURS, constants=self.constants, host_ranks=machine.slots)

    @property
    def peak_flops(self) -> float:
        """Of one device in 16 bit, as its vendor counts: what MFU is a share of."""
        assert self.gpu is not None
        return 1e12 * (self.peak_tflops or self.gpu.tflops_16bit)

    def scale(self, precision: str) -> Scale:
        return self.scales.get(precision, Scale()).shrunk()


def catalogue_rates(machine: Machine, *, gpu: Gpu | None = None, prices: Prices | None = None) -> Rates:
    """From the catalogue; `gpu`: the numbers of one that is not in it. A CPU rank is estimated from its cores."""
    if machine.device == "cpu":
        found: Gpu | None = cpu_device(cores=machine.cores / machine.slots, memory_bytes=machine.memory_bytes)
    else:
        found = gpu or GPUS.get(machine.gpu or "")
    links = _links_here(found, machine) if found else None
    constants = CPU if machine.device == "cpu" else PUBLISHED
    return Rates(gpu=found, links=links, constants=constants, prices=prices or Prices())


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
        fp32_ratio=1.0,
    )
