"""cluster.gpu -> the Machine to plan for, when the GPUs are somewhere else. DERIVE, pure.

What cannot be known from here is assumed: memory and cores of the host for each GPU. Its disk stays unknown, so nothing is
said about it. `run` uses the machine as it is and refuses another GPU than the one named.
"""

from __future__ import annotations

from launcher.errors import LauncherError, Problem
from launcher.plan.gpus import GPUS, Gpu, gpu_named
from launcher.plan.legality.model import untrained
from launcher.plan.plan import Machine
from launcher.plan.shape import ModelShape
from launcher.spec.wording import nearest
from launcher.units import GIB

HOST_BYTES_PER_GPU = 128 * GIB  # nodes of clouds have 1-2 TiB for 8 GPUs
CORES_PER_GPU = 12
WHERE = "cluster.gpu"


def away_machine(gpu_name: str, *, slots: int | None) -> Machine:
    """A host with `slots` of these GPUs. LauncherError E216 for a GPU nobody knows, or without a number of them."""
    gpu = _gpu(gpu_name)
    if slots is None:
        what = f"{gpu.name} is planned for from elsewhere, but not how many"
        raise LauncherError(Problem(code="E216", where=WHERE, what=what, hint="add `slots: 8` beside it"))
    return Machine(
        device="cuda",
        slots=slots,
        gpu=gpu.name,
        memory_bytes=gpu.usable_bytes,
        host_memory_bytes=HOST_BYTES_PER_GPU * slots,
        disk_free_bytes=None,
        cores=CORES_PER_GPU * slots,
        bf16=gpu.bf16,
        fp16=True,
        devices=tuple(range(slots)),
    )


def refuse_other_gpu(gpu_name: str | None, machine: Machine) -> None:
    """LauncherError E216 where the job names a GPU that is not the one that is here."""
    if gpu_name is None or _gpu(gpu_name).name == machine.gpu:
        return
    what = f"{gpu_name} is named, but this machine has {machine.gpu or 'no GPU that can be used'}"
    hint = "run it where they are; to run here, remove gpu"
    raise LauncherError(Problem(code="E216", where=WHERE, what=what, hint=hint))


def refuse_untrained(shape: ModelShape) -> None:
    """LauncherError E222 for a family that can only be planned for: the rule of the plan lets it pass where a GPU is named."""
    for said in untrained(shape):
        raise LauncherError(Problem(code="E222", where="model.source", what=said.what, hint=said.hint))


def _gpu(name: str) -> Gpu:
    gpu = gpu_named(name)
    if gpu is None:
        near = nearest(name, GPUS)
        hint = f"did you mean {near}?" if near else f"use one of {', '.join(GPUS)}"
        raise LauncherError(Problem(code="E216", where=WHERE, what=f"{name} is not in the catalogue of GPUs", hint=hint))
    return gpu
