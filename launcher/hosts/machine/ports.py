"""Where ranks can meet on this host: an address that the others reach, and a free port. DO, only looking."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher.errors import LauncherError, Problem

FIRST_PORT, LAST_PORT = 20_000, 32_000  # below the range from which the kernel gives outgoing connections their ports
PORT_TRIES = 200
LOOPBACK, EVERY_CARD, ANYWHERE = "127.0.0.1", "0.0.0.0", "::"
_ANY_PORT = 9  # of UDP: nothing is sent
_LISTENS = "0A"  # in the kernel's tables of sockets


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


def check_port(port: int) -> None:
    """LauncherError E406 where ranks cannot meet on the very port that the job names, with who holds it."""
    dual = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if dual else socket.AF_INET) as tried:
        if dual:
            tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # As PyTorch does it: connections of the stage before, which the kernel remembers for a minute, hold nothing.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((ANYWHERE if dual else EVERY_CARD, port))
            return
        except OSError as error:
            holder = holder_of(port)
            what = f"the job names it for the ranks to meet on: {error.strerror}{f', by {holder}' if holder else ''}"
    hint = "end what holds it, or set another `port` in cluster.kubernetes or cluster.cloud and render again"
    raise LauncherError(Problem(code="E406", where=f"{socket.gethostname()}, port {port}", what=what, hint=hint))


def holder_of(port: int, proc: Path = Path("/proc")) -> str:
    """Which process listens on it: `process 12 (python3)`. Empty where the system does not tell, as of other users."""
    sockets = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening(proc / "net" / table, port)}
    for handle in proc.glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(handle) in sockets:
                process = handle.parent.parent
                return f"process {process.name} ({(process / 'comm').read_text(encoding='utf-8').strip()})"
    return ""


def _listening(table: Path, port: int) -> list[str]:
    """Inodes of the sockets that listen on the port. Columns: number, local address, remote one, state, …, inode the tenth."""
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [row[9] for row in rows if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port]


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
