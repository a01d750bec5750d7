"""A row's `GPU` and `gpu_mem_GB` -> the GPU it ran on: the catalogue's, one of those below, or the nearest one, which is said.

The catalogue (launcher/plan/gpus.py) has what a job can name. Here is what others published on besides. Dense peaks with fp32
sums, from the makers' data sheets (NVIDIA: half of the figure with sparsity, GeForce: a quarter of it). L40, L20, A30 and TPUs
were compared with tables of other programs (github.com/feifeibear/LLMRoofline), the rest was not read again. An entry of AMD's
MI250 is one of its two dies, which programs see as a GPU. What no row has calibrated takes the shares of a like generation.
"""

from __future__ import annotations

import re
from dataclasses import replace

from launcher.plan.gpus import GPUS, Generation, Gpu, gpu_of
from published.table import Row, number

# name, generation whose shares it takes, usable GiB, TFLOPS in 16 bit, memory, NVLink, GPUs on it, PCIe, NIC, processors, W
_ROWS: tuple[tuple[str, Generation, float, float, float, float, int, float, float, int, float], ...] = (
    ("p100-16gb", "volta", 15.9, 21.2, 732, 80, 8, 15.75, 1.5, 56, 300),
    ("v100s-32gb", "volta", 31.7, 130, 1134, 0, 1, 15.75, 1.5, 80, 250),
    ("titanrtx-24gb", "turing", 23.6, 130.5, 672, 50, 2, 15.75, 1.5, 72, 280),
    ("rtx2080ti-11gb", "turing", 10.8, 56.9, 616, 50, 2, 15.75, 1.5, 68, 250),
    ("rtx3080-10gb", "ampere_pcie", 9.8, 59.5, 760, 0, 1, 31, 1.5, 68, 320),
    ("rtx3080ti-12gb", "ampere_pcie", 11.8, 68.2, 912, 0, 1, 31, 1.5, 80, 350),
    ("rtx3090ti-24gb", "ampere_pcie", 23.7, 80, 1008, 56, 2, 31, 1.5, 84, 450),
    ("rtx4080-16gb", "ada", 15.7, 97.5, 717, 0, 1, 31, 1.5, 76, 320),
    ("rtx5090-32gb", "ada", 31.4, 209.5, 1792, 0, 1, 63, 1.5, 170, 575),
    ("rtxpro6000-96gb", "ada", 95.0, 503.8, 1792, 0, 1, 63, 6.25, 188, 600),
    ("a4000-16gb", "ampere_pcie", 15.7, 76.7, 448, 0, 1, 31, 1.5, 48, 140),
    ("a5000-24gb", "ampere_pcie", 23.7, 111.1, 768, 56, 2, 31, 1.5, 64, 230),
    ("rtx6000ada-48gb", "ada", 47.5, 364.2, 960, 0, 1, 31, 3.1, 142, 300),
    ("a10-24gb", "ampere_pcie", 22.3, 125, 600, 0, 1, 31, 3.1, 72, 150),
    ("a30-24gb", "ampere_pcie", 23.6, 165, 933, 100, 2, 31, 6.25, 56, 165),
    ("a100-pcie-40gb", "ampere", 39.4, 312, 1555, 300, 2, 31, 12.5, 108, 250),
    ("a100-pcie-80gb", "ampere", 79.2, 312, 1935, 300, 2, 31, 12.5, 108, 300),
    ("a800-80gb", "ampere", 79.2, 312, 2039, 200, 8, 31, 25, 108, 400),
    ("l40-48gb", "ada", 45.0, 181, 864, 0, 1, 31, 6.25, 142, 300),
    ("l20-48gb", "ada", 45.0, 119.5, 864, 0, 1, 31, 6.25, 92, 275),
    ("h800-80gb", "hopper", 79.2, 989, 3350, 200, 8, 63, 50, 132, 700),
    ("mi100-32gb", "cdna3", 31.9, 92.3, 1229, 92, 4, 31, 12.5, 120, 300),
    ("mi210-64gb", "cdna3", 63.9, 181, 1638, 150, 4, 31, 12.5, 104, 300),
    ("mi250-64gb", "cdna3", 63.9, 181, 1638, 200, 8, 31, 12.5, 104, 280),
    ("mi250x-64gb", "cdna3", 63.9, 191.5, 1638, 200, 8, 36, 12.5, 110, 280),
    ("mi325x-256gb", "cdna3", 255.0, 1307, 6000, 448, 8, 63, 50, 304, 1000),
    ("mi355x-288gb", "cdna3", 287.0, 2516, 8000, 537, 8, 63, 50, 256, 1400),
    ("gaudi2-96gb", "unknown", 94.6, 432, 2450, 262, 8, 31, 37.5, 24, 600),
    ("gaudi3-128gb", "unknown", 126.0, 1835, 3700, 525, 8, 63, 75, 64, 900),
    ("tpuv3-16gb", "unknown", 15.7, 61.5, 450, 80, 1024, 16, 12.5, 2, 225),
    ("tpuv4-32gb", "unknown", 31.2, 275, 1228, 150, 4096, 16, 12.5, 8, 192),
    ("tpuv5e-16gb", "unknown", 15.7, 197, 819, 100, 256, 16, 12.5, 4, 200),
    ("tpuv5p-95gb", "unknown", 94.0, 459, 2765, 300, 8960, 16, 12.5, 8, 350),
    ("tpuv6e-32gb", "unknown", 31.2, 918, 1640, 224, 256, 16, 25, 4, 300),
    ("ascend910-32gb", "unknown", 31.0, 256, 1200, 30, 8, 31, 12.5, 32, 310),
    ("ascend910b-64gb", "unknown", 61.0, 313, 1600, 196, 8, 31, 25, 20, 400),
    ("max1550-128gb", "unknown", 124.0, 832, 3277, 180, 6, 63, 25, 128, 600),
)

DEVICES: dict[str, Gpu] = GPUS | {row[0]: gpu_of((*row, 0.0)) for row in _ROWS}

# What a name says, the first that fits; where a name has several sizes of memory, the nearest of them is taken.
_NAMES: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (pattern, tuple(names.split()))
    for pattern, names in (
        (r"gb300", "gb300-288gb"),
        (r"gb200", "gb200-189gb"),
        (r"gh200|grace.?hopper", "gh200-96gb"),
        (r"b300", "b300-288gb"),
        (r"b200", "b200-180gb"),
        (r"h200", "h200-141gb"),
        (r"h100.*pci", "h100-pcie-80gb"),
        (r"h100.*nvl\b", "h100-nvl-94gb"),
        (r"h800", "h800-80gb"),
        (r"h100", "h100-80gb"),
        (r"\bh20\b", "h20-96gb"),
        (r"a100.*pci", "a100-pcie-80gb a100-pcie-40gb"),
        (r"a800", "a800-80gb"),
        (r"a100", "a100-80gb a100-40gb"),
        (r"v100s", "v100s-32gb"),
        (r"v100", "v100-32gb v100-16gb"),
        (r"p100", "p100-16gb"),
        (r"mi35\d", "mi355x-288gb"),
        (r"mi325", "mi325x-256gb"),
        (r"mi30[0-9]", "mi300x-192gb"),
        (r"mi250x", "mi250x-64gb"),
        (r"mi250", "mi250-64gb"),
        (r"mi2[0-9]+", "mi210-64gb"),
        (r"mi100", "mi100-32gb"),
        (r"gaudi.?3|hl.?3", "gaudi3-128gb"),
        (r"gaudi|hl.?2|\bhpu", "gaudi2-96gb"),
        (r"v6e|trillium", "tpuv6e-32gb"),
        (r"v5p", "tpuv5p-95gb"),
        (r"v5e|v5.?lite", "tpuv5e-16gb"),
        (r"tpu.*v3|\bv3-\d", "tpuv3-16gb"),
        (r"tpu", "tpuv4-32gb"),
        (r"910b|910c", "ascend910b-64gb"),
        (r"ascend|910", "ascend910-32gb"),
        (r"max.?1550|ponte", "max1550-128gb"),
        (r"\bl40s", "l40s-48gb"),
        (r"\bl40\b", "l40-48gb"),
        (r"\bl20\b", "l20-48gb"),
        (r"\bl4\b", "l4-24gb"),
        (r"pro.?6000", "rtxpro6000-96gb"),
        (r"6000.?ada", "rtx6000ada-48gb"),
        (r"a6000", "a6000-48gb"),
        (r"a5000", "a5000-24gb"),
        (r"a4[05]00", "a4000-16gb"),
        (r"\ba10g", "a10g-24gb"),
        (r"\ba10\b", "a10-24gb"),
        (r"\ba30\b", "a30-24gb"),
        (r"\ba40\b", "a40-48gb"),
        (r"5090", "rtx5090-32gb"),
        (r"4090", "rtx4090-24gb"),
        (r"4080", "rtx4080-16gb"),
        (r"3090.?ti", "rtx3090ti-24gb"),
        (r"3090", "rtx3090-24gb"),
        (r"3080.?ti", "rtx3080ti-12gb"),
        (r"3080", "rtx3080-10gb"),
        (r"2080.?ti", "rtx2080ti-11gb"),
        (r"titan.?rtx", "titanrtx-24gb"),
        (r"\bt4\b", "t4-16gb"),
    )
)
_FAMILIES: tuple[tuple[str, str], ...] = (  # of a name that nobody above has
    (r"\bmi\d|instinct|amd", "mi300x-192gb"),
    (r"rtx.?50|blackwell", "rtx5090-32gb"),
    (r"rtx.?40|\bada\b", "rtx4090-24gb"),
    (r"rtx.?20|turing|quadro", "rtx2080ti-11gb"),
    (r"rtx|geforce|gtx", "rtx3090-24gb"),
    (r"\bb\d{2,3}", "b200-180gb"),
    (r"\bh\d{2,3}|hopper", "h100-80gb"),
    (r"\ba\d{2,3}|ampere", "a100-80gb"),
    (r"\bl\d{1,2}", "l40s-48gb"),
    (r"\bv\d{2,3}|volta", "v100-32gb"),
    (r"\bp\d{2,3}|pascal", "p100-16gb"),
)
USUAL = "a100-80gb"  # of which most rows are


def gpu_of(row: Row) -> tuple[Gpu, str]:
    """The GPU, and in words what was taken for it where the row names none that is known."""
    text, stated = row["GPU"].lower(), stated_gb(row)
    names = next((names for pattern, names in _NAMES if re.search(pattern, text)), None)
    if names:
        return _clocked(DEVICES[_nearest(names, stated)], stated), ""
    alike = [name for name in GPUS if stated and abs(nominal_gb(name) / stated - 1) < 0.02]
    family = next((name for pattern, name in _FAMILIES if re.search(pattern, text)), None)
    taken = family or (alike[0] if len(alike) == 1 else _nearest(_SERVERS, stated) if stated else USUAL)
    said = f"{row['GPU'] or 'no GPU'}{f' of {stated:g} GB' if stated else ''}"
    return DEVICES[taken], f"{said} taken for {taken}"


_SERVERS = (
    "a100-80gb",
    "a100-40gb",
    "v100-32gb",
    "v100-16gb",
    "rtx4090-24gb",
    "l40s-48gb",
    "h20-96gb",
    "h200-141gb",
    "mi300x-192gb",
)


def stated_gb(row: Row) -> float | None:
    """`gpu_mem_GB`, or else what the name says: `A100-80GB (400W)`."""
    said = re.search(r"(\d+)\s*gi?b", row["GPU"].lower())
    return number(row, "gpu_mem_GB") or (float(said[1]) if said else None)


def nominal_gb(name: str) -> float:
    return float(name.rsplit("-", 1)[-1].removesuffix("gb"))


def _nearest(names: tuple[str, ...], stated: float | None) -> str:
    return min(names, key=lambda name: abs(nominal_gb(name) - stated)) if stated else names[0]


def _clocked(gpu: Gpu, stated: float | None) -> Gpu:
    """torchtitan's H100 has 96 GB of HBM2e and 500 W, 0.86 of the clock; an MI250 of 128 GB is both dies."""
    if gpu.name == "h100-80gb" and stated and 90 < stated < 100:
        return replace(gpu, tflops_16bit=0.86 * gpu.tflops_16bit, memory_gbs=2400, usable_gib=stated * 0.98)
    if gpu.name.startswith("mi250") and stated and stated > 100:
        both = {name: 2 * getattr(gpu, name) for name in ("tflops_16bit", "memory_gbs", "usable_gib", "multiprocessors")}
        return replace(gpu, **both)
    return gpu
