"""What a connection to a host starts there: it reads the first line, and does it or hands it to the keeper. DO.

look    facts of the host, as one line
keep    an order: from then on a pipe between the connection and the run's keeper, which outlives it
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.backends.shell import start_detached
from launcher.errors import EXIT_BUG, EXIT_DONE, EXIT_USAGE
from launcher.hosts.look import facts_as_dict, look
from launcher.hosts.room import NotPrivate, Room, room_of
from launcher.hosts.wire import MAX_LINE, BadLine, line, order_from, order_line, parse

KEEPER_WAIT_S = 20.0
OTHER_WAIT_S = 30.0  # for the keeper of an earlier attempt to end


def serve() -> int:
    """The exit code. Speaks on stdin and stdout alone."""
    with open(0, "rb", buffering=0, closefd=False) as stdin:  # what follows the line is left for the relay
        first = stdin.readline(MAX_LINE)
    try:
        message = parse(first)
        match message.get("do"):
            case "keep":
                return _keep(message)
            case "look":
                return _look(message)
        raise BadLine(f"there is no {message.get('do')!r} in this version")
    except (BadLine, NotPrivate) as error:
        _say({"kind": "refused", "what": str(error)})
        return EXIT_USAGE


def _look(message: Mapping[str, object]) -> int:
    facts = look(str(message.get("host", "")), folder=Path(str(message.get("folder", "/"))))
    _say({"kind": "facts", **facts_as_dict(facts)})
    return EXIT_DONE


def _keep(message: Mapping[str, object]) -> int:
    order = order_from(message)
    room = room_of(order.token)
    deadline_s = time.monotonic() + OTHER_WAIT_S
    while time.monotonic() < deadline_s:
        with _keeper(room) as link:
            link.sendall(order_line(order))
            if parse(_first_line(link)).get("kind") == "kept":
                return _relay(link)
        time.sleep(0.2)  # it ends what it has; the next one finds nothing of the run alive
    _say({"kind": "refused", "what": f"the keeper of an earlier attempt did not end within {OTHER_WAIT_S:.0f} s"})
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


def _say(message: Mapping[str, object]) -> None:
    sys.stdout.buffer.write(line(message))
    sys.stdout.buffer.flush()
