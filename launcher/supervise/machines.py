"""(GPUs of all ranks, figures of the weakest host) -> Machine: this host or many, by the same rules. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.hosts.machine.catalogue import catalogue_name
from launcher.hosts.machine.gpus import BF16_SINCE, FP16_SINCE, GpuFact
from launcher.plan.plan import Machine


def gpu_machine(
    gpus: Sequence[GpuFact],
    *,
    devices: tuple[int, ...],
    host_memory_bytes: int,
    disk_free_bytes: int,
    cores: int,
    network_gbs: float | None,
    hosts: tuple[str, ...] = (),
) -> Machine:
    """`gpus` of all hosts, `devices` their numbers on each. The smallest memory and the oldest capability decide for all."""
    smallest, capability = min(gpus, key=lambda gpu: gpu.total_bytes), min(gpu.capability for gpu in gpus)
    return Machine(
        device="cuda",
        slots=len(devices),
        gpu=catalogue_name(smallest),
        memory_bytes=smallest.total_bytes,
        host_memory_bytes=host_memory_bytes,
        disk_free_bytes=disk_free_bytes,
        cores=cores,
        bf16=capability >= BF16_SINCE,
        fp16=capability >= FP16_SINCE,
        devices=devices,
        nodes=len(hosts) or 1,
        hosts=hosts,
        nvlink=None if any(gpu.nvlinks is None for gpu in gpus) else all(gpu.nvlinks for gpu in gpus),
        pcie_gbs=min((gpu.pcie_gbs for gpu in gpus if gpu.pcie_gbs), default=None),
        network_gbs=network_gbs,
    )
