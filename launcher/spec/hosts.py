"""(cluster block) -> its hosts: of the hostfile or the list in the job, less what `include` and `exclude` leave out. ASK.

include: worker-1@worker-2:0,2      as DeepSpeed's --include: these hosts, of the second only slots 0 and 2
exclude: worker-1:0                 all but that slot; a host without slots is left out whole
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import LauncherError, Problem
from launcher.spec.cluster import ClusterSpec
from launcher.spec.hostfile import read_hostfile
from launcher.spec.wording import nearest, shown

_SLOT_LIST = re.compile(r"[0-9]{1,4}(,[0-9]{1,4})*")


@dataclass(frozen=True, slots=True)
class ClusterHost:
    """One host and the numbers of its slots that take a rank: GPUs, or CPU processes."""

    host: str
    devices: tuple[int, ...]
    where: str  # the line that names it


def hosts_of(cluster: ClusterSpec) -> tuple[ClusterHost, ...]:
    """Every host that takes ranks, in the order of the file. LauncherError E101, E116 with all that is wrong."""
    if cluster.hosts:
        slots = tuple(range(cluster.slots or 1))
        named = [ClusterHost(host, slots, f"cluster.hosts.{number}") for number, host in enumerate(cluster.hosts)]
    else:
        assert cluster.hostfile is not None  # spec: one of the two
        path = Path(cluster.hostfile)
        named = [ClusterHost(entry.host, tuple(range(entry.slots)), f"{path}:{entry.line}:1") for entry in read_hostfile(path)]
    return filtered(named, include=cluster.include, exclude=cluster.exclude)


def filtered(hosts: Sequence[ClusterHost], *, include: str | None, exclude: str | None) -> tuple[ClusterHost, ...]:
    """What the filters leave. LauncherError E116 for a host or slot that is not there, and where nothing is left."""
    if not (include or exclude):
        return tuple(hosts)
    field = "cluster.include" if include else "cluster.exclude"
    meant: dict[str, tuple[int, ...]] = {}
    problems: list[Problem] = []
    known = {host.host: host for host in hosts}
    for part in (include or exclude or "").split("@"):
        try:
            host, devices = _meant(part, known)
        except _Wrong as wrong:
            problems.append(Problem(code="E116", where=field, what=wrong.what, hint=wrong.hint))
        else:
            meant[host] = tuple(sorted({*meant.get(host, ()), *devices}))
    if problems:
        raise LauncherError(problems)
    left = tuple(_left(hosts, meant, keep=bool(include)))
    if not left:
        what = "leaves no slot of any host"
        raise LauncherError(Problem(code="E116", where=field, what=what, hint="name fewer hosts in it"))
    return left


def _left(hosts: Sequence[ClusterHost], meant: Mapping[str, Sequence[int]], *, keep: bool) -> Iterator[ClusterHost]:
    for host in hosts:
        named = meant.get(host.host, ())
        devices = tuple(named) if keep else tuple(number for number in host.devices if number not in named)
        if devices:
            yield ClusterHost(host.host, devices, host.where)


class _Wrong(Exception):
    """One part of a filter that names nothing."""

    def __init__(self, what: str, hint: str):
        super().__init__(what)
        self.what, self.hint = what, hint


def _meant(part: str, known: Mapping[str, ClusterHost]) -> tuple[str, tuple[int, ...]]:
    """Host and slots of `worker-2:0,2`. An IPv6 address may stand in brackets, as its colons would be taken for the slots'."""
    name, colon, numbers = part.strip().rpartition(":") if ":" in part and part.strip() not in known else (part.strip(), "", "")
    name = name.strip("[]")
    if name not in known:
        near = nearest(name, list(known))
        hint = f"did you mean {near}?" if near else f"name one of {', '.join(list(known)[:8])}"
        raise _Wrong(f"{shown(name)} is none of the hosts", hint)
    if not colon:
        return name, known[name].devices
    if not _SLOT_LIST.fullmatch(numbers):
        raise _Wrong(f"{shown(numbers)} is no list of slots", f"write {name}:0,1")
    devices = tuple(int(number) for number in numbers.split(","))
    missing = [number for number in devices if number not in known[name].devices]
    if missing:
        last = known[name].devices[-1]
        raise _Wrong(f"{name} has no slot {missing[0]}", f"its slots are 0 to {last}")
    return name, devices
