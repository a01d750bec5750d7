"""Whether hosts reach each other: each opens a door, a port of those on which ranks meet, and knocks at all the others. DO.

At a door a word is told that only this host was given: what answers there is this host, and not another one or a stranger.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from launcher.hosts.machine.facts import Door, Odd
from launcher.hosts.machine.networks import interface_of
from launcher.hosts.machine.ports import ANYWHERE, address_towards, bind_free_port, is_loopback

REACH_S = 3.0  # within a data centre an answer takes a millisecond
RESOLVE_S = 3.0
RESOLVERS = 16
LONGEST_WORD = 64
MOST_GUESTS = 1024  # who come at once and wait
REACHED = ""


def listen(word: str, others: Sequence[str]) -> Door:
    """Open this host's door until the process ends. LauncherError E406 where no port can be had."""
    address = address_towards(others)
    server = bind_free_port(ANYWHERE if _has_ipv6() else "0.0.0.0")  # its name may lead to another of its cards
    server.listen(MOST_GUESTS)
    threading.Thread(target=_serve, args=(server, word.encode()), daemon=True).start()
    port = int(server.getsockname()[1])
    return Door(host="", word=word, address=address, port=port, interface=interface_of(address))


def _has_ipv6() -> bool:
    """Whether a socket can take both kinds of addresses; the kernel may be told to have no IPv6."""
    return os.path.exists("/proc/net/if_inet6")


def _serve(server: socket.socket, word: bytes) -> None:
    while True:
        with suppress(OSError):
            guest, _ = server.accept()
            with guest:
                guest.sendall(word)


def reach(doors: Sequence[Door], *, knock: Collection[str]) -> list[Odd]:
    """Only the hosts with whom something is odd. `knock`: whose doors are tried.

    Where a name leads is tried only where it is not the address that the host itself has told; so is its own name's.
    """
    names = _resolve([door.host for door in doors])
    targets = {(door.address, door.port) for door in doors if door.host in knock}
    targets |= {(address, door.port) for door in doors if (address := names[door.host]) not in (None, door.address)}
    targets |= {(own, door.port) for door in doors if door.host in knock and (own := _other_own(door))}
    heard = _knock(sorted(targets))
    found = []
    for door in doors:
        resolved = names[door.host]
        by_address = _told(heard.get((door.address, door.port), door.word), door.word)
        by_name = REACHED if resolved in (None, door.address) else _told(heard[str(resolved), door.port], door.word)
        by_own = _told(heard.get((_other_own(door), door.port), door.word), door.word)
        if {by_address, by_name, by_own} != {REACHED} or resolved is None:
            found.append(Odd(host=door.host, by_address=by_address, resolved=resolved, by_name=by_name, by_own=by_own))
    return found


def _other_own(door: Door) -> str:
    """Where the host's own name leads, if that is neither the address that is tried anyway nor one for the host alone."""
    return "" if door.own is None or door.own == door.address or is_loopback(door.own) else door.own


def _told(heard: str, word: str) -> str:
    return REACHED if heard == word else heard


def _resolve(names: Sequence[str]) -> dict[str, str | None]:
    """Name -> address. A server of names that does not answer is not waited for longer than RESOLVE_S."""
    found: dict[str, str | None] = dict.fromkeys(names)
    waiting = list(found)

    def work() -> None:
        while waiting:
            with suppress(IndexError, OSError):
                name = waiting.pop()
                found[name] = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(RESOLVERS, len(names)))]
    deadline_s = time.monotonic() + RESOLVE_S
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, deadline_s - time.monotonic()))
    return dict(found)


def _knock(targets: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Target -> the word that is told there, or the error. All at once, and not longer than REACH_S."""
    heard = dict.fromkeys(targets, "does not answer")
    with selectors.DefaultSelector() as waiting:
        for target in targets:
            tried = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
            tried.setblocking(False)
            with suppress(BlockingIOError):
                try:
                    tried.connect(target)
                except BlockingIOError:
                    raise
                except OSError as error:
                    heard[target] = _said(error)
                    tried.close()
                    continue
            waiting.register(tried, selectors.EVENT_READ, target)
        deadline_s = time.monotonic() + REACH_S
        while waiting.get_map() and (left_s := deadline_s - time.monotonic()) > 0:
            for key, _ in waiting.select(left_s):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    heard[key.data] = key.fileobj.recv(LONGEST_WORD).decode("ascii", errors="replace")
                except OSError as error:
                    heard[key.data] = _said(error)
                waiting.unregister(key.fileobj)
                key.fileobj.close()
        for key in list(waiting.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
    return heard


def _said(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
