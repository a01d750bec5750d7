"""(job) -> what task files of SkyPilot and dstack share: the GPU as they call it, and the checks of it. Pure, one table."""

from __future__ import annotations

from launcher.backends import joined
from launcher.errors import Problem
from launcher.plan.gpus import gpu_named
from launcher.spec.cloud import CloudSpec
from launcher.spec.job import JobSpec

# Catalogue -> (SkyPilot's name, dstack's name, GB of it). Cards of which there are several forms under one name are left out.
NAMES: dict[str, tuple[str, str, int]] = {
    "v100-16gb": ("V100", "V100", 16),
    "v100-32gb": ("V100-32GB", "V100", 32),
    "a100-40gb": ("A100", "A100", 40),
    "a100-80gb": ("A100-80GB", "A100", 80),
    "h100-80gb": ("H100", "H100", 80),
    "h200-141gb": ("H200", "H200", 141),
    "b200-180gb": ("B200", "B200", 180),
    "mi300x-192gb": ("MI300X", "MI300X", 192),
    "l40s-48gb": ("L40S", "L40S", 48),
    "l4-24gb": ("L4", "L4", 24),
    "a10g-24gb": ("A10G", "A10G", 24),
    "rtx4090-24gb": ("RTX4090", "RTX4090", 24),
    "t4-16gb": ("T4", "T4", 16),
}


def cloud_of(job: JobSpec) -> CloudSpec:
    assert job.cluster.cloud is not None  # spec: these backends need it
    return job.cluster.cloud


def known_name(job: JobSpec) -> tuple[str, str, int] | None:
    """None for a GPU that is told by its numbers, or has no sure name there."""
    gpu = gpu_named(job.cluster.gpu) if isinstance(job.cluster.gpu, str) else None
    return NAMES.get(gpu.name) if gpu else None


def find_problems(job: JobSpec) -> list[Problem]:
    problems = joined.find_problems(job)
    if job.cluster.gpu is not None and cloud_of(job).accelerator is None and known_name(job) is None:
        what = f"{job.cluster.backend} may call this GPU by several names, or by none that is known"
        hint = "add its name there: `cloud: {accelerator: H100-NVL, …}`"
        problems.append(Problem(code="E216", where="cluster.gpu", what=what, hint=hint))
    return problems
