"""NVIDIA's management library, imported where there may be a GPU: it costs every other start 12 ms."""

from __future__ import annotations

import importlib
from types import ModuleType

_NVML = "pynvml"


def load_nvml() -> ModuleType:
    return importlib.import_module(_NVML)


def text_of(value: bytes | str) -> str:
    """What older versions of the library give as bytes."""
    return value.decode() if isinstance(value, bytes) else value
