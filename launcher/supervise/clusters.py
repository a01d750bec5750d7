"""(cluster block) -> Machine of hosts that are reached over a network, asked all at once. DO, only looking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.backends.registry import Fleets, load_backend
from launcher.errors import LauncherError, Problem
from launcher.hosts.ask import facts_of_all
from launcher.hosts.gpus import BF16_SINCE, FP16_SINCE, catalogue_name
from launcher.hosts.look import HostFacts
from launcher.plan.plan import Machine
from launcher.spec.cluster import ClusterSpec
from launcher.spec.hostfile import HostEntry, read_hostfile


def agents(cluster: ClusterSpec, entries: Sequence[HostEntry]) -> dict[str, tuple[str, ...]]:
    """Host -> what starts an agent there."""
    backend = load_backend(cluster.backend)
    assert isinstance(backend, Fleets)
    return {entry.host: backend.agent_argv(cluster, entry.host) for entry in entries}


def remote_machine(cluster: ClusterSpec, *, runs_root: Path, written_bytes: int) -> Machine:
    """The hosts of the hostfile, as the weakest of them is: all ranks run the same plan.

    LauncherError E402, E403, E417-E420 with what stands against any of them.
    """
    assert cluster.hostfile is not None  # spec: backend ssh needs one
    entries = read_hostfile(Path(cluster.hostfile))
    facts = facts_of_all(agents(cluster, entries), folder=runs_root)
    slots = {entry.host: entry.slots for entry in entries}
    problems = [problem for one in facts for problem in slot_problems(one, slots[one.host])]
    if len(set(slots.values())) > 1:
        problems.append(_unequal(Path(cluster.hostfile), entries))
    kinds = {bool(one.gpus) for one in facts}
    if len(kinds) > 1:
        without = ", ".join(one.host for one in facts if not one.gpus)
        hint = "mend the driver there, or leave those hosts out"
        problems.append(Problem(code="E402", where=without, what="has no GPU that can be used, other hosts have", hint=hint))
    if problems:
        raise LauncherError(problems)
    return machine_of(facts, slots=entries[0].slots, written_bytes=written_bytes)


def slot_problems(facts: HostFacts, slots: int) -> list[Problem]:
    """A slot is a GPU, or on hosts without one a CPU process."""
    have, kind = (len(facts.gpus), "GPUs") if facts.gpus else (facts.cores, "cores")
    if slots <= have:
        return []
    what = f"slots={slots}, but the host has {have} {kind} that can be used"
    return [Problem(code="E402", where=facts.host, what=what, hint=f"write slots={have}")]


def machine_of(facts: Sequence[HostFacts], *, slots: int, written_bytes: int = 0) -> Machine:
    """Facts of hosts that are alike enough to hold the same ranks."""
    gpus = [gpu for one in facts for gpu in one.gpus[:slots]]
    memory = min(one.memory_bytes for one in facts)
    smallest = min(gpus, key=lambda gpu: gpu.total_bytes) if gpus else None
    capability = min((gpu.capability for gpu in gpus), default=None)
    return Machine(
        device="cuda" if smallest else "cpu",
        slots=slots,
        gpu=catalogue_name(smallest) if smallest else None,
        memory_bytes=smallest.total_bytes if smallest else memory // slots,
        host_memory_bytes=memory,
        disk_free_bytes=min(one.disk_free_bytes for one in facts) + written_bytes,
        cores=min(one.cores for one in facts),
        bf16=capability is None or capability >= BF16_SINCE,
        fp16=capability is not None and capability >= FP16_SINCE,
        devices=tuple(gpu.number for gpu in facts[0].gpus[:slots]),
        nodes=len(facts),
        hosts=tuple(one.host for one in facts),
        nvlink=None if any(gpu.nvlinks is None for gpu in gpus) or not gpus else all(gpu.nvlinks for gpu in gpus),
        pcie_gbs=min((gpu.pcie_gbs for gpu in gpus if gpu.pcie_gbs), default=None),
        network_gbs=min((one.network_gbs for one in facts if one.network_gbs), default=None),
    )


def _unequal(path: Path, entries: Sequence[HostEntry]) -> Problem:
    odd = next(entry for entry in entries if entry.slots != entries[0].slots)
    what = f"{odd.host} has slots={odd.slots}, {entries[0].host} slots={entries[0].slots}: every host must take as many ranks"
    fewest = min(entry.slots for entry in entries)
    return Problem(code="E403", where=f"{path}:{odd.line}:1", what=what, hint=f"write slots={fewest} for all of them")
