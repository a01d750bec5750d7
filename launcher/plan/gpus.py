"""GPU catalogue: a name -> memory, precisions, peak. DERIVE, a table.

Sources, read 2026-11: vendors' data sheets through the ml-engineering tables (github.com/stas00/ml-engineering, compute and
accelerator pages), usable memory from cloud catalogues (MiB as nvidia-smi shows them). Dense peaks, never sparse ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU. `usable_gib` is what a process can allocate; it is below the label."""

    name: str
    usable_gib: float
    bf16: bool
    tflops_16bit: float

    @property
    def usable_bytes(self) -> int:
        return int(self.usable_gib * GIB)


def _gpu(name: str, usable_gib: float, tflops_16bit: float, *, bf16: bool = True) -> tuple[str, Gpu]:
    return name, Gpu(name=name, usable_gib=usable_gib, bf16=bf16, tflops_16bit=tflops_16bit)


GPUS: dict[str, Gpu] = dict(
    [
        _gpu("v100-16gb", 15.0, 125, bf16=False),
        _gpu("v100-32gb", 30.5, 125, bf16=False),
        _gpu("a100-40gb", 39.4, 312),
        _gpu("a100-80gb", 79.2, 312),
        _gpu("h100-80gb", 79.2, 989),
        _gpu("h100-pcie-80gb", 79.2, 756),
        _gpu("h100-nvl-94gb", 93.6, 836),
        _gpu("h200-141gb", 140.4, 989),
        _gpu("gh200-96gb", 94.5, 989),
        _gpu("b200-180gb", 179.1, 2250),
        _gpu("b300-288gb", 262.0, 2250),
        _gpu("gb200-189gb", 184.0, 2500),
        _gpu("mi300x-192gb", 191.0, 1307),
        _gpu("l40s-48gb", 45.0, 362),
        _gpu("l4-24gb", 22.5, 121),
        _gpu("a10g-24gb", 22.3, 70),
        _gpu("a40-48gb", 45.0, 149.7),
        _gpu("a6000-48gb", 48.0, 154.8),
        _gpu("rtx4090-24gb", 23.5, 165.2),
        _gpu("rtx3090-24gb", 23.5, 71),
        _gpu("t4-16gb", 14.6, 65, bf16=False),
    ]
)


def gpu_named(name: str) -> Gpu | None:
    """The catalogue's entry for `H100-80GB`, `h100_80gb`, or a short name that fits exactly one entry (`h200`)."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    if key in GPUS:
        return GPUS[key]
    fits = [gpu for entry, gpu in GPUS.items() if entry.startswith(f"{key}-")]
    return fits[0] if len(fits) == 1 else None
