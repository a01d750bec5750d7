"""A visit of `doctor` or of a plan, on the host: questions from the connection, answered one after the other until it ends. DO.

look     facts of the host; with `share`, also whether it sees the file that the control side wrote, and writes one back
clock    what time it is here
listen   a door: the address and port where ranks could meet here; who comes is told `word`
reach    every other host by its name and by the address of its door; told is only what is not as it should be
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from launcher.errors import EXIT_DONE
from launcher.hosts.checks.doors import listen, reach
from launcher.hosts.connection.wire import MAX_LINE, BadLine, parse, say
from launcher.hosts.machine.facts import Door
from launcher.hosts.machine.look import look

SHARE_LAG_S = 3.0  # until a new file on a network file system is seen everywhere


def answer(first: Mapping[str, object]) -> int:
    """The exit code, at the end of the connection."""
    message: Mapping[str, object] = first
    while True:
        say(_reply(message))
        text = sys.stdin.buffer.readline(MAX_LINE)
        if not text:
            return EXIT_DONE
        message = parse(text)


def _reply(message: Mapping[str, object]) -> dict[str, object]:
    match message:
        case {"do": "look", "host": str(host), "folder": str(folder), **rest}:
            facts = look(host, folder=Path(folder), paths=_pairs(rest.get("paths")), share=_share(rest.get("share")))
            return {"kind": "facts", **asdict(facts)}
        case {"do": "clock"}:
            return {"kind": "clock", "t": time.time()}
        case {"do": "listen", "word": str(word), "others": list(others)}:
            return {"kind": "door", **asdict(listen(word, [str(other) for other in others]))}
        case {"do": "reach", "me": str(me), "doors": list(told), "knock": list(knock)}:
            doors = [Door(**door) for door in told if door["host"] != me]
            return {"kind": "reached", "odd": [asdict(one) for one in reach(doors, knock=frozenset(knock))]}
    raise BadLine(f"{message.get('do')!r} is of another version")


def _pairs(value: object) -> list[tuple[str, str]]:
    return [(str(path), str(use)) for path, use in value] if isinstance(value, list) else []


def _share(asked: object) -> str:
    """Wait for the control side's file, and write ours beside it. What HostFacts.share says."""
    if not isinstance(asked, dict):
        return "none"
    theirs, ours, text = str(asked["theirs"]), str(asked["ours"]), str(asked["text"])
    deadline_s = time.monotonic() + SHARE_LAG_S
    while not _holds(theirs, text):
        if time.monotonic() > deadline_s:
            return "missing"
        time.sleep(0.1)
    try:
        with open(ours, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return "seen"


def _holds(path: str, text: str) -> bool:
    try:
        os.listdir(os.path.dirname(path))  # a network file system looks again, instead of remembering that nothing was there
        return Path(path).read_text(encoding="utf-8") == text
    except OSError:
        return False
