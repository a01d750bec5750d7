"""The driver's list of GPUs -> those that CUDA_VISIBLE_DEVICES lets us use. DO: asks NVML, starts no CUDA context, no torch."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from launcher.errors import LauncherError, Problem
from launcher.hosts.machine.nvml import load_nvml, text_of

BF16_SINCE = (8, 0)
FP16_SINCE = (5, 3)
PCIE_LANE_GBS = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}  # by generation, one direction, after coding


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFact:
    """One GPU as the driver tells it; numbers follow the PCI bus, as nvidia-smi shows them."""

    number: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    nvlinks: int | None = None  # that are up; None: the driver does not tell
    pcie_gbs: float | None = None  # 1e9 bytes a second and direction, of the slot it sits in


def find_gpus(environ: Mapping[str, str]) -> list[GpuFact]:
    """GPUs that ranks may use; empty on a machine without, and where torch was built without CUDA."""
    if not _torch_has_cuda():
        return []
    pynvml = load_nvml()
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        raise LauncherError(_unusable("driver", f"the NVIDIA driver does not answer: {error}", "see nvidia-smi")) from None
    try:
        found = [_gpu_fact(pynvml, number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise LauncherError(_unusable("driver", f"a GPU does not answer: {error}", "see nvidia-smi")) from None
    finally:
        pynvml.nvmlShutdown()
    return visible_of(found, environ.get("CUDA_VISIBLE_DEVICES"))


def visible_of(found: list[GpuFact], visible: str | None) -> list[GpuFact]:
    """Those that CUDA_VISIBLE_DEVICES names, in its order. An entry that names none is an error, where CUDA stops silently."""
    if visible is None:
        return found
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if not names or names[0] in ("-1", "NoDevFiles"):
        return []
    chosen = [next((gpu for gpu in found if _is_named(gpu, name)), None) for name in names]
    unknown = [name for name, gpu in zip(names, chosen, strict=True) if gpu is None]
    if unknown:
        what = f"{unknown[0]!r} names none of the {len(found)} GPUs of this machine"
        hint = "name whole GPUs by number or by UUID; parts of a GPU (MIG) cannot be used yet"
        raise LauncherError(_unusable("CUDA_VISIBLE_DEVICES", what, hint))
    return list(dict.fromkeys(gpu for gpu in chosen if gpu is not None))


def _is_named(gpu: GpuFact, name: str) -> bool:
    return gpu.number == int(name) if name.isascii() and name.isdigit() else len(name) > 4 and gpu.uuid.startswith(name)


def _gpu_fact(pynvml: ModuleType, number: int) -> GpuFact:
    handle = pynvml.nvmlDeviceGetHandleByIndex(number)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuFact(
        number=number,
        uuid=text_of(pynvml.nvmlDeviceGetUUID(handle)),
        name=text_of(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        nvlinks=_nvlinks(pynvml, handle),
        pcie_gbs=_pcie_gbs(pynvml, handle),
    )


def _nvlinks(pynvml: ModuleType, handle: object) -> int | None:
    """Links that are up. A GPU without NVLink does not know the question."""
    try:
        links = range(pynvml.NVML_NVLINK_MAX_LINKS)
        return sum(int(pynvml.nvmlDeviceGetNvLinkState(handle, link)) for link in links)
    except pynvml.NVMLError_NotSupported:
        return 0
    except pynvml.NVMLError:
        return None


def _pcie_gbs(pynvml: ModuleType, handle: object) -> float | None:
    """Of the link's generation and width at most: an idle GPU slows its link down."""
    try:
        generation = int(pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle))
        width = int(pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle))
    except pynvml.NVMLError:
        return None
    return PCIE_LANE_GBS[generation] * width if generation in PCIE_LANE_GBS else None


def _torch_has_cuda() -> bool:
    """Read from torch's version file: importing torch costs seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^cuda\b[^=]*=\s*['\"]", text, flags=re.MULTILINE) is not None


def _unusable(where: str, what: str, hint: str) -> Problem:
    return Problem(code="E410", where=where, what=what, hint=hint)
