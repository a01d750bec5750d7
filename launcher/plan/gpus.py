"""GPU catalogue: a name -> memory, precisions, peaks, links, watts and price. DERIVE, a table.

Sources, read 2026-11: vendors' data sheets through the ml-engineering tables (github.com/stas00/ml-engineering, compute and
accelerator pages), usable memory from cloud catalogues (MiB as nvidia-smi shows them), prices from skypilot's catalogue and
public price indexes: they move, so a job can name its own. Dense peaks, never sparse ones. `nic` is what clouds put beside one
such GPU; `multiprocessors` decides how the tiles of a matrix product fill the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.spec.gpu import WITHOUT_BF16, GpuGeneration
from launcher.units import GIB

Generation = GpuGeneration | Literal["unknown", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU. Bandwidths in 1e9 bytes a second and one direction; `usable_gib` is what a process can allocate."""

    name: str
    generation: Generation
    usable_gib: float
    tflops_16bit: float
    memory_gbs: float
    nvlink_gbs: float  # to all peers together; 0: peers are reached over PCIe
    nvlink_gpus: int  # GPUs that NVLink joins
    pcie_gbs: float
    nic_gbs: float
    multiprocessors: int
    watts: float
    usd_per_hour: float
    bf16: bool = True
    fp8_ratio: float = 1.0  # peak in 8 bit / in 16 bit
    fp4_ratio: float = 1.0
    fp32_ratio: float = 1 / 16  # peak of plain fp32 / in 16 bit
    tf32_ratio: float = 0.5  # with products in TF32

    @property
    def usable_bytes(self) -> int:
        return int(self.usable_gib * GIB)


# name, generation, usable GiB, TFLOPS in 16 bit, memory, NVLink, GPUs on it, PCIe, NIC, multiprocessors, W, $/h
_ROWS: tuple[tuple[str, Generation, float, float, float, float, int, float, float, int, float, float], ...] = (
    ("v100-16gb", "volta", 15.0, 125, 900, 150, 8, 15.75, 1.5, 80, 300, 0.55),
    ("v100-32gb", "volta", 30.5, 125, 900, 150, 8, 15.75, 1.5, 80, 300, 0.55),
    ("a100-40gb", "ampere", 39.4, 312, 1555, 300, 8, 31, 25, 108, 400, 1.29),
    ("a100-80gb", "ampere", 79.2, 312, 2039, 300, 8, 31, 25, 108, 400, 2.00),
    ("h100-80gb", "hopper", 79.2, 989, 3350, 450, 8, 63, 50, 132, 700, 2.95),
    ("h100-pcie-80gb", "hopper_pcie", 79.2, 756, 2000, 0, 1, 63, 12.5, 114, 350, 3.29),
    ("h100-nvl-94gb", "hopper_pcie", 93.6, 836, 3900, 300, 2, 63, 12.5, 132, 400, 2.08),
    ("h200-141gb", "hopper", 140.4, 989, 4800, 450, 8, 63, 50, 132, 700, 3.60),
    ("h20-96gb", "hopper", 95.5, 148, 4000, 450, 8, 63, 50, 78, 400, 1.60),
    ("gh200-96gb", "hopper", 94.5, 989, 4000, 450, 1, 450, 50, 132, 900, 3.50),
    ("b200-180gb", "blackwell", 179.1, 2250, 8000, 900, 8, 63, 50, 148, 1000, 4.89),
    ("b300-288gb", "blackwell_ultra", 262.0, 2250, 8000, 900, 8, 126, 100, 148, 1400, 6.99),
    ("gb200-189gb", "blackwell", 184.0, 2450, 8000, 900, 72, 450, 50, 148, 1200, 6.50),
    ("gb300-288gb", "blackwell_ultra", 270.0, 2450, 8000, 900, 72, 450, 100, 148, 1400, 8.00),
    ("mi300x-192gb", "cdna3", 191.0, 1307, 5300, 448, 8, 63, 50, 304, 750, 1.99),
    ("l40s-48gb", "ada", 45.0, 362, 864, 0, 1, 31, 6.25, 142, 350, 0.86),
    ("l4-24gb", "ada", 22.5, 121, 300, 0, 1, 31, 3.1, 58, 72, 0.44),
    ("a10g-24gb", "ampere_pcie", 22.3, 70, 600, 0, 1, 31, 1.5, 80, 150, 1.01),
    ("a40-48gb", "ampere_pcie", 45.0, 149.7, 696, 56, 2, 31, 3.1, 84, 300, 0.67),
    ("a6000-48gb", "ampere_pcie", 48.0, 154.8, 768, 56, 2, 31, 3.1, 84, 300, 0.80),
    ("rtx4090-24gb", "ada", 23.5, 165.2, 1008, 0, 1, 31, 1.5, 128, 450, 0.40),
    ("rtx3090-24gb", "ampere_pcie", 23.5, 71, 936, 56, 2, 31, 1.5, 82, 350, 0.22),
    ("t4-16gb", "turing", 14.6, 65, 320, 0, 1, 15.75, 1.5, 40, 70, 0.53),
)
_FP32: dict[Generation, tuple[float, float]] = {  # plain fp32 and TF32 over 16 bit; data sheets
    "volta": (1 / 8, 1 / 8),
    "turing": (1 / 8, 1 / 8),
    "ampere": (1 / 16, 1 / 2),
    "ampere_pcie": (1 / 4, 1 / 2),
    "ada": (1 / 4, 1 / 2),
    "hopper": (1 / 15, 1 / 2),
    "hopper_pcie": (1 / 15, 1 / 2),
    "blackwell": (1 / 28, 1 / 2),
    "blackwell_ultra": (1 / 28, 1 / 2),
    "cdna3": (1 / 8, 1 / 2),
    "unknown": (1 / 28, 1 / 2),  # the smallest that a GPU with bf16 has
}
_RATIOS: dict[Generation, tuple[float, float]] = {  # peaks in 8 and in 4 bit over the one in 16 bit
    "ada": (2, 1),
    "hopper": (2, 1),
    "hopper_pcie": (2, 1),
    "blackwell": (2, 4),
    "blackwell_ultra": (2, 6),
    "cdna3": (2, 1),
}


def gpu_of(row: tuple[str, Generation, float, float, float, float, int, float, float, int, float, float]) -> Gpu:
    """The columns of the catalogue: name, generation, GiB, TFLOPS in 16 bit, GB/s of memory and NVLink, GPUs that it joins,
    GB/s of PCIe and of the host's network, multiprocessors, watts, USD an hour."""
    name, generation, usable_gib, tflops, memory, nvlink, nvlink_gpus, pcie, nic, multiprocessors, watts, usd = row
    fp8_ratio, fp4_ratio = _RATIOS.get(generation, (1, 1))
    return Gpu(
        name=name,
        generation=generation,
        usable_gib=usable_gib,
        tflops_16bit=tflops,
        memory_gbs=memory,
        nvlink_gbs=nvlink,
        nvlink_gpus=nvlink_gpus,
        pcie_gbs=pcie,
        nic_gbs=nic,
        multiprocessors=multiprocessors,
        watts=watts,
        usd_per_hour=usd,
        bf16=generation not in WITHOUT_BF16,
        fp8_ratio=fp8_ratio,
        fp4_ratio=fp4_ratio,
        **fp32_ratios(generation),
    )


def fp32_ratios(generation: Generation) -> dict[str, float]:
    """Fields of Gpu: the peaks of plain fp32 and of TF32 over the one in 16 bit."""
    fp32, tf32 = _FP32[generation]
    return {"fp32_ratio": fp32, "tf32_ratio": tf32}


GPUS: dict[str, Gpu] = {row[0]: gpu_of(row) for row in _ROWS}


def gpu_named(name: str) -> Gpu | None:
    """The catalogue's entry for `H100-80GB`, `h100_80gb`, or a short name that fits exactly one entry (`h200`)."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    if key in GPUS:
        return GPUS[key]
    fits = [gpu for entry, gpu in GPUS.items() if entry.startswith(f"{key}-")]
    return fits[0] if len(fits) == 1 else None
