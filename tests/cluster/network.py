"""Text for `ip`, `nft` and `tc`: switches, cables, addresses, and what can be wrong with them. Pure: nothing is run here.

    network 0: every eth0, 10.77.0.0/24        network 1: every eth1, 10.78.0.0/24

The switches stand in the room, a network namespace that has no way out. Clusters never meet, so all use the same addresses.
"""

from __future__ import annotations

from collections.abc import Mapping

FIRST_ADDRESS = 10  # of host number 0, the login host; node1 has .11
MAX_HOSTS = 240


def address(number: int, network: int = 0) -> str:
    return f"10.{77 + network}.0.{FIRST_ADDRESS + number}"


def port(number: int, network: int = 0) -> str:
    """The switch's end of a host's cable."""
    return f"h{number}eth{network}"


def wiring(numbers: Mapping[str, int], *, networks: int) -> str:
    """A shell script for the room: a network namespace per host, which outlives the host's crash, wired to every switch."""
    batch = ["link set lo up", *(f"netns add {name}" for name in numbers)]
    for network in range(networks):
        batch += [f"link add switch{network} type bridge", f"link set switch{network} up"]
        for name, number in numbers.items():
            batch.append(f"link add {port(number, network)} type veth peer name eth{network} netns {name}")
            batch.append(f"link set {port(number, network)} master switch{network} up")
    script = ["set -eu", _ip("ip", batch)]
    for name, number in numbers.items():
        lines = ["link set lo up"]
        for network in range(networks):
            lines += [f"addr add {address(number, network)}/24 dev eth{network}", f"link set eth{network} up"]
        script.append(_ip(f"ip -n {name}", lines))
    return "\n".join(script)


def _ip(command: str, lines: list[str]) -> str:
    return "\n".join([f"{command} -batch - <<'END'", *lines, "END"])


def drop(match: str) -> str:
    """For `nft -f -` in a host: what comes in and matches is lost without a word."""
    return "\n".join(
        [
            "add table inet fault",
            "add chain inet fault lost { type filter hook input priority 0; }",
            f"add rule inet fault lost {match} drop",
        ]
    )


DROP_NOTHING = "add table inet fault\ndelete table inet fault\n"
FULL_SPEED = ("qdisc", "replace", "dev", "eth0", "root", "noqueue")


def slow_down(kbit: int) -> list[str]:
    """For `tc` in a host: what it sends is held to this speed. There is no netem in many kernels, so no delay and no loss."""
    return ["qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", f"{kbit}kbit", "burst", "32kb", "latency", "400ms"]
