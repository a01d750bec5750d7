"""`keep`: from the order on, a pipe between the connection and the run's keeper, which outlives it. DO."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping

from launcher.backends.shell import start_detached
from launcher.errors import EXIT_BUG, EXIT_CLUSTER, EXIT_DONE
from launcher.hosts.connection.order import Order, order_from, order_line
from launcher.hosts.connection.wire import MAX_LINE, BadLine, parse, say
from launcher.hosts.fleet.room import NotPrivate, Room, room_of

KEEPER_WAIT_S = 20.0
OTHER_WAIT_S = 30.0  # for the keeper of an earlier attempt to end


def join(message: Mapping[str, object]) -> int:
    """The exit code. BadLine where the order cannot be kept here."""
    order = order_from(message)
    try:
        return _hand_over(order, room_of(order.token))
    except NotPrivate as error:
        raise BadLine(str(error)) from None


def _hand_over(order: Order, room: Room) -> int:
    deadline_s = time.monotonic() + OTHER_WAIT_S
    while time.monotonic() < deadline_s:
        with _keeper(room) as link:
            link.sendall(order_line(order))
            answer = parse(_first_line(link))
            if answer.get("kind") == "kept":
                return _relay(link)
        if answer.get("kind") == "same":
            say({"kind": "refused", "same_as": answer.get("host"), "what": "another host of the run is this machine"})
            return EXIT_CLUSTER
        time.sleep(0.2)  # it ends what it has; the next one finds nothing of the run alive
    say({"kind": "refused", "what": f"the keeper of an earlier attempt did not end within {OTHER_WAIT_S:.0f} s"})
    return EXIT_BUG


def _keeper(room: Room) -> socket.socket:
    """A connection to the run's keeper, which is started where there is none."""
    link, started, deadline_s = _connect(room), False, time.monotonic() + KEEPER_WAIT_S
    while link is None:
        if not started:
            argv = [sys.executable, "-P", "-m", "launcher.hosts", "keep", str(room.folder), room.name]
            start_detached(argv, cwd=room.folder, log=room.log)
            started = True
        if time.monotonic() > deadline_s:
            raise NotPrivate(f"the keeper did not start, see {room.log}")
        time.sleep(0.02)
        link = _connect(room)
    return link


def _connect(room: Room) -> socket.socket | None:
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(str(room.socket))
    except OSError:
        link.close()
        return None
    return link


def _first_line(link: socket.socket) -> bytes:
    """What the keeper says to the order; what follows is left for the relay."""
    text = b""
    while not text.endswith(b"\n") and len(text) < MAX_LINE and (byte := link.recv(1)):
        text += byte
    return text


def _relay(link: socket.socket) -> int:
    """Copy both ways until one side ends."""
    out = sys.stdout.buffer

    def inwards() -> None:
        while data := os.read(0, 2**16):
            link.sendall(data)
        link.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=inwards, daemon=True).start()
    try:
        while data := link.recv(2**16):
            out.write(data)
            out.flush()
    except OSError:
        pass
    return EXIT_DONE
