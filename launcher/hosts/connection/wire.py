"""What the controller and the hosts say to each other: one JSON object a line, both ways.

    controller → host   {"do": "look", …}                 what `launcher doctor` and plans ask: visit.py
                        {"do": "keep", …order…}           once, the first line: what shall be kept there
                        {"go": {…}}                       where the ranks meet; the order is started
                        {"beat": last number seen}        every BEAT_S: the lease goes on, what was seen is forgotten
                        {"leave": true}                   ask the ranks to save and leave
                        {"stop": grace seconds}           end the ranks, tell the end
    host → controller   {"kind": "kept", …}               the answer to an order
                        {"kind": "refused", "what": …}    not kept; "same_as": this machine is another host of the run too
                        {"kind": "beat"}                  the answer to a beat
                        {"n": 1, "kind": "ready", …}      numbered, so that a broken connection loses and repeats nothing
                        {"n": 2, "kind": "started", "pid": …}
                        {"n": 3, "kind": "line", "text": …}              a line of the launcher's output
                        {"n": 4, "kind": "word", "file": …, "at": …}     where its disk is not ours: a file has grown
                        {"n": 5, "kind": "death", "rank": …, "t": …}     a rank that ended without its marker
                        {"n": 6, "kind": "keeper.lost"}                  after a new connection: the keeper before was killed
                        {"n": 7, "kind": "ended", "code": …, "alive": […]}

Files go over connections of their own (porter.py).

A line has at most MAX_LINE bytes. What does not parse, or is no object, ends the connection: nobody else speaks here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

BEAT_S = 2.0
MAX_LINE = 8 * 2**20
LEASE_S = 30.0  # a host that heard no beat for so long ends its ranks: nobody may be left who would stop them
MAX_TEXT = 8 * 2**10  # of one line of output


class BadLine(ValueError):
    """The other end speaks another language: another version, or a login script that prints."""


def line(message: Mapping[str, object]) -> bytes:
    """JSON keeps every character of a value, and no newline of it is one of the line's."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def parse(text: bytes) -> dict[str, object]:
    """The object of one line. BadLine where it is none."""
    try:
        message = json.loads(text)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise BadLine(text[:200].decode("utf-8", errors="replace").strip())
    return message


def say(message: Mapping[str, object]) -> None:
    """One line on stdout, at once."""
    sys.stdout.buffer.write(line(message))
    sys.stdout.buffer.flush()
