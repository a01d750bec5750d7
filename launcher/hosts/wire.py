"""What the controller and the hosts say to each other: one JSON object a line, both ways. Pure.

    controller → host   {"do": "keep", …order…}           once, the first line: what shall be kept there
                        {"go": {…}}                       where the ranks meet; the order is started
                        {"beat": last number seen}        every BEAT_S: the lease goes on, what was seen is forgotten
                        {"stop": grace seconds}           end the ranks, tell the end
    host → controller   {"kind": "kept", …}               the answer to an order
                        {"kind": "beat"}                  the answer to a beat
                        {"n": 1, "kind": "ready", …}      numbered, so that a broken connection loses and repeats nothing
                        {"n": 2, "kind": "started", "pid": …}
                        {"n": 3, "kind": "line", "text": …}              a line of the launcher's output
                        {"n": 4, "kind": "death", "rank": …, "t": …}     a rank that ended without its marker
                        {"n": 5, "kind": "ended", "code": …, "alive": […]}

A line has at most MAX_LINE bytes. What does not parse, or is no object, ends the connection: nobody else speaks here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter, ValidationError

BEAT_S = 2.0
MAX_LINE = 8 * 2**20
LEASE_S = 30.0  # a host that heard no beat for so long ends its ranks: nobody may be left who would stop them
MAX_TEXT = 8 * 2**10  # of one line of output


class BadLine(ValueError):
    """The other end speaks another language: another version, or a login script that prints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one host shall keep alive: one attempt's launch.py and its ranks."""

    token: str  # the run folder: processes are found by it
    attempt: str  # another one than the last: whatever an earlier attempt left is ended first
    host: str  # its name, as the hostfile has it
    node: int  # its place among the hosts
    slots: int  # ranks on it
    argv: tuple[str, ...]  # of launch.py; {node} is filled in, and {addr} and {port} when the hosts have met
    env: dict[str, str] = field(repr=False)  # added to the host's own environment; may hold secrets
    cwd: str
    others: tuple[str, ...]  # names of the other hosts, as this one may know them
    lease_s: float = LEASE_S


def order_line(order: Order) -> bytes:
    return line({"do": "keep", **asdict(order)})


def order_from(message: Mapping[str, object]) -> Order:
    """BadLine where a field is missing or of another type: the two ends are of different versions."""
    try:
        return TypeAdapter(Order).validate_python(message)
    except ValidationError as error:
        raise BadLine(f"an order of another version: {error.errors()[0]['loc']} {error.errors()[0]['msg']}") from None


def line(message: Mapping[str, object]) -> bytes:
    """JSON keeps every character of a value, and no newline of it is one of the line's."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def parse(text: bytes) -> dict[str, object]:
    """The object of one line. BadLine where it is none."""
    try:
        message = json.loads(text)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise BadLine(text[:200].decode("utf-8", errors="replace").strip())
    return message
