"""Which host knocks at whose door. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

# As many pairs as hosts squared are too many for 1000 hosts, and for the table of neighbours of a kernel that has 1024 of them.
MOST_IN_FULL = 24


def knocks(hosts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Every pair of a few hosts. Of many, each knocks at the first, where ranks meet, at the next one and one row further on.

    A firewall between parts of a cluster, or in front of a host, is met by somebody all the same.
    """
    many, row = len(hosts) > MOST_IN_FULL, isqrt(len(hosts))
    found = {}
    for at, host in enumerate(hosts):
        others = (hosts[0], *(hosts[(at + step) % len(hosts)] for step in (1, row))) if many else hosts
        found[host] = tuple(dict.fromkeys(other for other in others if other != host))
    return found
