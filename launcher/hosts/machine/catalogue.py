"""A GPU as the driver names it -> the planner's name for it. Pure."""

from __future__ import annotations

import re

from launcher.hosts.machine.gpus import GpuFact
from launcher.plan.gpus import GPUS


def catalogue_name(gpu: GpuFact) -> str:
    """The planner's name for it: of the same family the one with the nearest memory; else the driver's own name."""
    text = re.sub(r"[^a-z0-9]", "", gpu.name.lower())
    family = [entry for entry in GPUS.values() if entry.name.split("-")[0] in text]
    if not family:
        return gpu.name
    return min(family, key=lambda entry: abs(entry.usable_bytes - gpu.total_bytes)).name
