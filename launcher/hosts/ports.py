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
LOOPBACK = "127.0.0.1"
_ANY_PORT = 9  # of UDP: nothing is sent


def free_port(address: str = LOOPBACK) -> int:
    """A port on which the ranks can meet: bound and given back. LauncherError E406 where none can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in random.SystemRandom().sample(range(FIRST_PORT, LAST_PORT), PORT_TRIES):
        with socket.socket(family) as tried:
            try:
                tried.bind((address, port))
            except OSError:
                continue
            return port
    what = f"none of {PORT_TRIES} ports between {FIRST_PORT} and {LAST_PORT} could be bound on {address}"
    raise LauncherError(Problem(code="E406", where=address, what=what, hint="end what holds them"))


def address_towards(others: Sequence[str]) -> str:
    """This host's address on its way to the first of the others that it knows; without any, the one its ssh client came to.

    The kernel's routing decides, so that a second network, a bridge of containers or `127.0.1.1` in /etc/hosts misleads nobody.
    """
    for other in others:
        with suppress(OSError):
            family, kind, protocol, _, target = socket.getaddrinfo(other, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as towards:
                towards.connect(target)
                return str(towards.getsockname()[0])
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else LOOPBACK
