"""cluster.gpu -> the Machine to plan for, when the GPUs are somewhere else. DERIVE, pure.

What cannot be known from here is assumed: memory and cores of the host for each GPU. Its disk stays unknown, so nothing is
said about it. `run` uses the machine as it is and refuses another GPU than the one named.
"""

from __future__ import annotations

from dataclasses import replace

from launcher.errors import LauncherError, Problem
from launcher.plan.gpus import GPUS, Gpu, fp32_ratios, gpu_named
from launcher.plan.legality.model import untrained
from launcher.plan.plan import Machine
from launcher.plan.shape import ModelShape
from launcher.spec.cluster import ClusterSpec
from launcher.spec.gpu import WITHOUT_BF16, GpuSpec
from launcher.spec.wording import nearest
from launcher.units import GIB

HOST_BYTES_PER_GPU = 128 * GIB  # nodes of clouds have 1-2 TiB for 8 GPUs
CORES_PER_GPU = 12
WHERE = "cluster.gpu"


def away_machine(gpu: str | GpuSpec, *, slots: int | None, nodes: int = 1) -> Machine:
    """Hosts with `slots` of these GPUs each. LauncherError E216 for a GPU nobody knows, or without a number of them."""
    found = named_gpu(gpu)
    if slots is None:
        what = f"{found.name} is planned for from elsewhere, but not how many"
        raise LauncherError(Problem(code="E216", where=WHERE, what=what, hint="add `slots: 8` beside it"))
    return Machine(
        device="cuda",
        slots=slots,
        gpu=found.name,
        memory_bytes=found.usable_bytes,
        host_memory_bytes=HOST_BYTES_PER_GPU * slots,
        disk_free_bytes=None,
        cores=CORES_PER_GPU * slots,
        bf16=found.bf16,
        fp16=True,
        devices=tuple(range(slots)),
        nodes=nodes,
    )


def coming_machine(cluster: ClusterSpec) -> Machine:
    """Nodes that a scheduler starts: GPUs as named, else the cores and memory that the job asks for."""
    asked = cluster.kubernetes or cluster.slurm
    cores, memory_gib = (asked.cpus, asked.memory_gib) if asked else (None, None)
    if cluster.gpu is not None:
        found = away_machine(cluster.gpu, slots=cluster.slots, nodes=cluster.nodes or 1)
        memory_bytes = memory_gib * GIB if memory_gib else found.host_memory_bytes
        return replace(found, cores=cores or found.cores, host_memory_bytes=memory_bytes)
    assert cores is not None, "spec: nodes without a GPU tell their cores"
    assert memory_gib is not None, "and their memory"
    return Machine.of_cpus(
        slots=cluster.slots or 1,
        memory_bytes=memory_gib * GIB,
        cores=cores,
        disk_free_bytes=None,
        nodes=cluster.nodes or 1,
    )


def refuse_other_machine(cluster: ClusterSpec, machine: Machine) -> None:
    """LauncherError E216 where the job names a GPU that is not the one that is here, or more hosts than this one."""
    problems = []
    if cluster.nodes is not None and cluster.nodes > machine.nodes:
        what = f"{cluster.nodes} hosts are named: backend {cluster.backend} starts ranks on this machine only"
        hint = "remove nodes to run here, or use backend: ssh, slurm or mpi; with gpu beside it `plan` plans for them"
        problems.append(Problem(code="E216", where="cluster.nodes", what=what, hint=hint))
    if cluster.gpu is not None and named_gpu(cluster.gpu).name != machine.gpu:
        name = cluster.gpu if isinstance(cluster.gpu, str) else cluster.gpu.name
        what = f"{name} is named, but this machine has {machine.gpu or 'no GPU that can be used'}"
        hint = "run it where they are; to run here, remove gpu"
        problems.append(Problem(code="E216", where=WHERE, what=what, hint=hint))
    if problems:
        raise LauncherError(problems)


def named_gpu(gpu: str | GpuSpec) -> Gpu:
    """The catalogue's entry, or one of the numbers that the job gives. LauncherError E216 for a name nobody knows."""
    if isinstance(gpu, str):
        return _gpu(gpu)
    generation = gpu.generation or "unknown"
    return Gpu(
        name=gpu.name,
        generation=generation,
        usable_gib=gpu.memory_gib,
        tflops_16bit=gpu.tflops,
        memory_gbs=gpu.memory_gbs,
        nvlink_gbs=gpu.nvlink_gbs,
        nvlink_gpus=gpu.nvlink_gpus or 1,
        pcie_gbs=gpu.pcie_gbs,
        nic_gbs=gpu.nic_gbs,
        multiprocessors=gpu.multiprocessors,
        watts=gpu.watts,
        usd_per_hour=gpu.usd_per_hour,
        bf16=generation not in WITHOUT_BF16 if gpu.bf16 is None else gpu.bf16,
        **fp32_ratios(generation),
    )


def refuse_untrained(shape: ModelShape) -> None:
    """LauncherError E222 for a family that can only be planned for: the rule of the plan lets it pass where a GPU is named."""
    for said in untrained(shape):
        raise LauncherError(Problem(code="E222", where="model.source", what=said.what, hint=said.hint))


def _gpu(name: str) -> Gpu:
    gpu = gpu_named(name)
    if gpu is None:
        near = nearest(name, GPUS)
        known = f"use one of {', '.join(GPUS)}, or a block with its numbers"
        hint = f"did you mean {near}?" if near else known
        raise LauncherError(Problem(code="E216", where=WHERE, what=f"{name} is not in the catalogue of GPUs", hint=hint))
    return gpu
