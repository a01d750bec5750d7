"""Meeting: how fast ranks exchanged something inside each host and between the hosts, and what is odd about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from launcher.hosts.checks.symptom import Symptom, symptom

SLOW = 0.5  # of what the usual host sends


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpeed:
    """1e9 bytes a second. None: one rank on the host, or one host."""

    host: str
    inside_gbs: float | None  # that pass each rank in an all-reduce of the host's ranks
    sent_gbs: float | None  # from all ranks of the host to the next host, while every second host sends


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Every rank was there."""

    world: int
    all_gbs: float | None  # that pass each rank in an all-reduce of all ranks
    hosts: tuple[HostSpeed, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def meeting_from(told: Mapping[str, object], hosts: Sequence[str]) -> Meeting:
    """ValueError where the ranks' figures are not those of as many hosts."""
    inside, sent = (_figures(told.get(name), len(hosts)) for name in ("inside_gbs", "sent_gbs"))
    world, whole = told.get("world"), told.get("all_gbs")
    if not isinstance(world, int):
        raise ValueError("no number of ranks")
    speeds = (HostSpeed(host=host, inside_gbs=inside[at], sent_gbs=sent[at]) for at, host in enumerate(hosts))
    return Meeting(world=world, all_gbs=float(whole) if isinstance(whole, int | float) else None, hosts=tuple(speeds))


def _figures(told: object, hosts: int) -> list[float | None]:
    figures = told if isinstance(told, list) else []
    if figures and len(figures) != hosts:
        raise ValueError(f"figures of {len(figures)} hosts, there are {hosts}")
    return [float(figure) for figure in figures] or [None] * hosts


def meeting_symptoms(meeting: Meeting) -> list[Symptom]:
    """A host that sends much slower than the usual one holds all of them up."""
    sent = [one.sent_gbs for one in meeting.hosts if one.sent_gbs is not None]
    usual = median(sent) if sent else 0.0
    return [
        symptom(
            one.host,
            "E437",
            f"sends {one.sent_gbs:.3g} GB/s to the next host, the usual host {usual:.3g} GB/s",
            "look at its cable, its switch port, and with NCCL_DEBUG=INFO at the card that is used",
            stops=False,
        )
        for one in meeting.hosts
        if one.sent_gbs is not None and one.sent_gbs < SLOW * usual
    ]
