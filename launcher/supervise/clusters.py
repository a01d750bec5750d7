"""(cluster block) -> Machine of hosts that are reached over a network, asked all at once. DO, only looking."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.backends.registry import Fleets, load_backend
from launcher.errors import LauncherError, Problem
from launcher.hosts.checks.ask import facts_of_all
from launcher.hosts.machine.facts import HostFacts
from launcher.plan.plan import Machine
from launcher.spec.cluster import ClusterSpec
from launcher.spec.hosts import ClusterHost, hosts_of
from launcher.supervise.facts import Remote
from launcher.supervise.machines import gpu_machine


def agents(cluster: ClusterSpec, hosts: Sequence[ClusterHost]) -> dict[str, tuple[str, ...]]:
    """Host -> what starts an agent there."""
    backend = load_backend(cluster.backend)
    assert isinstance(backend, Fleets)
    return {host.host: backend.agent_argv(cluster, host.host) for host in hosts}


def asked_hosts(runs_root: Path, *, written_bytes: int = 0) -> Remote:
    """For a plan: the hosts of the job's cluster, asked when they are needed."""
    return lambda cluster: remote_machine(cluster, runs_root=runs_root, written_bytes=written_bytes)


def remote_machine(cluster: ClusterSpec, *, runs_root: Path, written_bytes: int) -> Machine:
    """The hosts of the job, as the weakest of them is: all ranks run the same plan.

    LauncherError E101, E116, E402, E403, E417-E420 with what stands against any of them.
    """
    hosts, folder = hosts_of(cluster), Path(os.path.realpath(runs_root))
    return machine_from(facts_of_all(agents(cluster, hosts), folder=folder), hosts, written_bytes=written_bytes)


def machine_from(facts: Sequence[HostFacts], hosts: Sequence[ClusterHost], *, written_bytes: int = 0) -> Machine:
    """LauncherError E402, E403 where they cannot hold the same ranks."""
    named = {host.host: host for host in hosts}
    problems = [problem for one in facts for problem in slot_problems(one, named[one.host])]
    problems += [_unequal(hosts[0], host) for host in hosts if host.devices != hosts[0].devices][:1]
    if len({bool(one.gpus) for one in facts}) > 1:
        without = ", ".join(one.host for one in facts if not one.gpus)
        hint = "mend the driver there, or leave those hosts out"
        problems.append(Problem(code="E402", where=without, what="has no GPU that can be used, other hosts have", hint=hint))
    if problems:
        raise LauncherError(problems)
    return machine_of(facts, devices=hosts[0].devices, written_bytes=written_bytes)


def every_slot(hosts: Sequence[ClusterHost], facts: Sequence[HostFacts]) -> tuple[ClusterHost, ...]:
    """The hosts with as many slots as the one with the fewest GPUs has; without GPUs one each."""
    fewest = min(len(one.gpus) for one in facts) or 1
    return tuple(replace(host, devices=tuple(range(fewest))) for host in hosts)


def slot_problems(facts: HostFacts, host: ClusterHost) -> list[Problem]:
    """A slot is a GPU, or on hosts without one a CPU process."""
    have, kind = (len(facts.gpus), "GPUs") if facts.gpus else (facts.cores, "cores")
    if host.devices[-1] < have:
        return []
    what = f"slot {host.devices[-1]} ({host.where}) is more than the {have} {kind} that can be used there"
    return [Problem(code="E402", where=facts.host, what=what, hint=f"write slots={have}")]


def machine_of(facts: Sequence[HostFacts], *, devices: Sequence[int], written_bytes: int = 0) -> Machine:
    """Facts of hosts that are alike enough to hold the same ranks; `devices` are the slots of each that take one."""
    hosts, cores = tuple(one.host for one in facts), min(one.cores for one in facts)
    memory_bytes = min(one.memory_bytes for one in facts)
    fullest = min(facts, key=lambda one: one.disk_free_bytes)
    disk_bytes = fullest.disk_free_bytes + written_bytes
    gpus = [one.gpus[number] for one in facts if one.gpus for number in devices]
    if not gpus:
        machine = Machine.of_cpus(
            slots=len(devices),
            memory_bytes=memory_bytes,
            cores=cores,
            disk_free_bytes=disk_bytes,
            nodes=len(facts),
            hosts=hosts,
        )
        return replace(machine, disk_host=fullest.host)
    machine = gpu_machine(
        gpus,
        devices=tuple(facts[0].gpus[number].number for number in devices),
        host_memory_bytes=memory_bytes,
        disk_free_bytes=disk_bytes,
        cores=cores,
        network_gbs=min((one.network_gbs for one in facts if one.network_gbs), default=None),
        hosts=hosts,
    )
    return replace(machine, disk_host=fullest.host)


def _unequal(first: ClusterHost, odd: ClusterHost) -> Problem:
    mine, other = (",".join(map(str, host.devices)) for host in (odd, first))
    what = f"{odd.host} takes slots {mine}, {first.host} slots {other}: every host must take the same ones"
    return Problem(code="E403", where=odd.where, what=what, hint="give all hosts as many slots, or leave hosts out")
