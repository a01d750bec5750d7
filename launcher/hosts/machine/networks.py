"""This host's network cards -> GB/s to other hosts. DO, reads /sys only.

InfiniBand and RoCE cards are what NCCL uses where there are such; else plain network cards that are up and have hardware behind
them. A virtual card tells no speed, or -1.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from pathlib import Path

SYS = Path("/sys")
SIOCGIFADDR = 0x8915


def network_gbs(root: Path = SYS) -> float | None:
    """1e9 bytes a second and direction of all cards together; None where none tells its speed."""
    fabric = sum(_fabric_gbits(port) for port in sorted(root.glob("class/infiniband/*/ports/*")))
    plain = sum(_card_gbits(card) for card in sorted(root.glob("class/net/*")))
    gbits = fabric or plain
    return gbits / 8 if gbits else None


def has_fabric(root: Path = SYS) -> bool:
    """InfiniBand or RoCE with a port that is up."""
    return any(_fabric_gbits(port) for port in root.glob("class/infiniband/*/ports/*"))


def interface_of(address: str) -> str | None:
    """Name of the card that has this IPv4 address; None where none has it, or where it is of IPv6."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # a card without an address
            if socket.inet_ntoa(told[20:24]) == address:
                return name
    return None


def interface_names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _fabric_gbits(port: Path) -> float:
    """`200 Gb/sec (4X HDR)` of a port that is active."""
    rate = re.match(r"\s*(\d+(?:\.\d+)?) Gb/sec", _text(port / "rate"))
    return float(rate[1]) if rate and "ACTIVE" in _text(port / "state") else 0.0


def _card_gbits(card: Path) -> float:
    """Megabits of a card that is up and has a device."""
    speed = _text(card / "speed").strip()
    usable = (card / "device").exists() and _text(card / "operstate").strip() == "up"
    return int(speed) / 1000 if usable and speed.isdecimal() else 0.0


def _text(path: Path) -> str:
    """Empty where the kernel does not tell."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
