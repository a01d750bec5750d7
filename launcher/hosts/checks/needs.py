"""(job, plan) -> Needs: what of a host a run will use, for the judges of hosts. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.hosts.machine.look import READ, WRITE
from launcher.plan.asked import parallel_of
from launcher.plan.plan import Plan
from launcher.spec.cluster import ClusterSpec
from launcher.spec.job import JobSpec

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Without a plan, only that there will be ranks."""

    slots: int | None = None  # ranks of a host; None: one for each GPU
    world: int = 1
    host_bytes: int = 0  # at the peak, of all ranks of a host
    gpu_bytes: int = 0  # at the peak, of each GPU
    disk_bytes: int = 0  # at the peak, where the run folder lies
    interfaces: tuple[tuple[str, str], ...] = ()  # (variable, network card that it names)
    own_interface: bool = False  # the ranks are told which card to use, so where a host's own name leads is of no account
    quantized: bool = False


def asked_needs(cluster: ClusterSpec, *, slots: int | None, world: int, quantized: bool = False) -> Needs:
    """What is known before there is a plan."""
    named = [(name, one) for name in _INTERFACES for one in cards_of(cluster.env.get(name, ""))]
    own = "GLOO_SOCKET_IFNAME" in cluster.env
    return Needs(slots=slots, world=world, interfaces=tuple(named), own_interface=own, quantized=quantized)


def planned_needs(job: JobSpec, plan: Plan) -> Needs:
    machine, on_cpu = plan.machine, plan.machine.device == "cpu"
    ranks = machine.slots
    host = max(ranks * ((stage.memory.host_peak_bytes or 0) + on_cpu * stage.memory.peak_bytes) for stage in plan.stages)
    gpu = 0 if on_cpu else max(stage.memory.peak_bytes for stage in plan.stages)
    asked = asked_needs(job.cluster, slots=ranks, world=machine.world, quantized=job.model.quantize is not None)
    return replace(asked, host_bytes=host, gpu_bytes=gpu, disk_bytes=plan.disk_bytes)


def cards_of(text: str) -> tuple[str, ...]:
    """Whole names of cards in the value of NCCL's and gloo's variables; `^eth` and beginnings of names say nothing certain."""
    if text.startswith("^"):
        return ()
    return tuple(name for name in text.removeprefix("=").split(",") if name)


def paths_on_hosts(job: JobSpec) -> tuple[tuple[str, str], ...]:
    """(path, what the ranks do with it): a local model, which they read, and folders for offload, which they write."""
    found = [(job.model.source, READ)] if job.model.source and job.model.source.startswith("/") else []
    found += [(path, WRITE) for stage in job.stages if (path := parallel_of(job, stage).nvme_path)]
    return tuple(dict.fromkeys(found))
