"""nodes/ of the run folder: what nodes that a scheduler started tell each other; nobody can log in to anybody. DO, small files.

    nodes/<N>.json    what node N says of itself, again and again: another number each time, so that silence is seen
    nodes/call.json   what node 0 asks of the others: to take part in a stage, to stop, or that all is over

Who was started anew has a new name (`nonce`), and a call names everybody whom it is for: what an earlier attempt left here
is for nobody. A refusal has a name of its own too, which no call names: who refuses hears none. Clocks of nodes are never
compared.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from launcher.rundir.folder import RunDir, read_json, write_json

BEAT_S = 5.0
LOOK_S = 0.5
COME_LATE_S = 30.0  # nodes of one job start within seconds of each other
SILENT_S = 120.0  # a shared folder may show old files for a minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a node says of itself."""

    node: int
    nonce: str
    host: str
    beat: int
    attempt: str = ""  # the last call that it took part in
    code: int | None = None  # how its part ended; None: it waits, or its part goes on
    refusal: list[dict[str, str]] = field(default_factory=list)  # problems for which it takes no part; it has ended then
    facts: dict[str, object] = field(default_factory=dict)  # of its software and GPUs, which node 0 compares with its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What node 0 asks. `nodes`: number -> nonce of those whom it is for."""

    do: Literal["stage", "stop", "end"]
    nodes: dict[str, str]
    attempt: str = ""
    stage: str = ""
    port: int = 0  # on which the ranks meet on node 0
    code: int = 0  # of the end: with which all of them end


def card_path(run: RunDir, node: int) -> Path:
    return run.nodes / f"{node}.json"


def read_card(run: RunDir, node: int) -> Card | None:
    """None where the node has not spoken yet."""
    try:
        return Card(**read_json(card_path(run, node)))  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError):
        return None


def write_card(run: RunDir, card: Card) -> None:
    with contextlib.suppress(OSError):  # a full disk: silence ends the attempt where it lasts
        write_json(card_path(run, card.node), asdict(card))


def read_call(run: RunDir) -> Call | None:
    try:
        return Call(**read_json(run.nodes / "call.json"))  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError):
        return None


def write_call(run: RunDir, call: Call) -> None:
    write_json(run.nodes / "call.json", asdict(call))


def clear(run: RunDir) -> None:
    """Nobody has spoken yet: who is alive says it again within BEAT_S."""
    for path in run.nodes.glob("*.json"):
        path.unlink(missing_ok=True)


def new_nonce() -> str:
    return secrets.token_hex(8)


@dataclass(slots=True)
class Hearing:
    """When a node was last heard, by our own clock."""

    card: Card | None = None
    heard_s: float = field(default_factory=time.monotonic)

    def hear(self, card: Card | None) -> None:
        if card is not None and (self.card is None or (card.nonce, card.beat) != (self.card.nonce, self.card.beat)):
            self.card, self.heard_s = card, time.monotonic()

    @property
    def silent(self) -> bool:
        return time.monotonic() - self.heard_s > SILENT_S


def is_led(run: RunDir) -> bool:
    """Whether a node 0 is heard now, which takes two beats."""
    before = read_card(run, 0)
    time.sleep(2 * BEAT_S)
    return read_card(run, 0) != before


@contextmanager
def leading(run: RunDir) -> Iterator[None]:
    """Node 0 is heard while the block runs, whatever it does meanwhile."""
    clear(run)
    over, nonce, host = threading.Event(), new_nonce(), socket.gethostname()

    def beat() -> None:
        number = 0
        while True:
            number += 1
            write_card(run, Card(node=0, nonce=nonce, host=host, beat=number))
            if over.wait(BEAT_S):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def say_end(run: RunDir, *, nodes: int, code: int) -> None:
    """All nodes end with this code; those that have not spoken yet, because all was over soon, are waited for a little."""
    deadline_s = time.monotonic() + COME_LATE_S
    while len(cards := _cards(run, nodes)) < nodes - 1 and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
    with contextlib.suppress(OSError):
        write_call(run, Call(do="end", nodes={str(card.node): card.nonce for card in cards}, code=code))


def _cards(run: RunDir, nodes: int) -> list[Card]:
    return [card for node in range(1, nodes) if (card := read_card(run, node)) is not None]
