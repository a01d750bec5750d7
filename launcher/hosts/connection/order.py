"""Order: what one host shall keep alive, and how it travels as a line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter, ValidationError

from launcher.hosts.connection.wire import LEASE_S, BadLine, line


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """The fleet's own process, which carries the run's token too: its host may be one of those that take ranks."""

    pid: int
    started_ticks: int
    boot: str  # of the kernel that these numbers are of


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one host shall keep alive: one attempt's launch.py and its ranks."""

    token: str  # the run folder: processes are found by it
    attempt: str  # another one than the last: whatever an earlier attempt left is ended first
    host: str  # its name, as the hostfile has it
    stage: str
    node: int  # its place among the hosts
    slots: int  # ranks on it
    argv: tuple[str, ...]  # of launch.py; {node} is filled in, and {addr} and {port} when the hosts have met
    env: dict[str, str] = field(repr=False)  # added to the host's own environment; may hold secrets
    cwd: str
    leader: Leader | None = None
    others: tuple[str, ...]  # names of the other hosts, as this one may know them
    lease_s: float = LEASE_S
    seen: int = 0  # number of the last message that the controller has; a keeper that never sent so many is not the first one


def order_line(order: Order) -> bytes:
    return line({"do": "keep", **asdict(order)})


def order_from(message: Mapping[str, object]) -> Order:
    """BadLine where a field is missing or of another type: the two ends are of different versions."""
    try:
        return TypeAdapter(Order).validate_python(message)
    except ValidationError as error:
        raise BadLine(f"an order of another version: {error.errors()[0]['loc']} {error.errors()[0]['msg']}") from None
