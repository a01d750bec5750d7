"""Where ranks can meet on this host: an address that the others reach, and a free port. DO, only looking."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Sequence
from contextlib import suppress

from launcher.errors import LauncherError, Problem

FIRST_PORT, LAST_PORT = 20_000, 32_000  # below the range from which the kernel gives outgoing connections their ports
PORT_TRIES = 200
LOOPBACK, EVERY_CARD, ANYWHERE = "127.0.0.1", "0.0.0.0", "::"
_ANY_PORT = 9  # of UDP: nothing is sent


def free_port(address: str = LOOPBACK) -> int:
    """A port on which the ranks can meet: bound and given back. LauncherError E406 where none can be bound."""
    with bind_free_port(address) as bound:
        return int(bound.getsockname()[1])


def bind_free_port(address: str) -> socket.socket:
    """A socket on a port that was free; ANYWHERE: of every address. LauncherError E406 where none can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in random.SystemRandom().sample(range(FIRST_PORT, LAST_PORT), PORT_TRIES):
        tried = socket.socket(family)
        try:
            if address == ANYWHERE:
                tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            tried.bind((address, port))
        except OSError:
            tried.close()
            continue
        return tried
    what = f"none of {PORT_TRIES} ports between {FIRST_PORT} and {LAST_PORT} could be bound on {address}"
    raise LauncherError(Problem(code="E406", where=address, what=what, hint="end what holds them"))


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def address_towards(others: Sequence[str]) -> str:
    """This host's address on its way to the first of the others that it knows; without any, the one its ssh client came to.

    The kernel's routing decides, so that a second network, a bridge of containers or `127.0.1.1` in /etc/hosts misleads nobody.
    A name of another host that leads to this one is passed over: nobody would reach us there.
    """
    for other in others:
        with suppress(OSError):
            family, kind, protocol, _, target = socket.getaddrinfo(other, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as towards:
                towards.connect(target)
                mine = str(towards.getsockname()[0])
            if not is_loopback(mine):
                return mine
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else LOOPBACK
