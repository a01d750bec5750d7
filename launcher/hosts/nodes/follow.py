"""A node other than the first: takes part in every stage that node 0 calls it to, until node 0 says that all is over. DO.

It decides nothing and judges nothing: its ranks' markers and its launch.py's exit code lie in the run folder. A silent node 0
is taken for dead: the part is ended, so that no GPU waits in a collective, and the next node 0 is waited for.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.errors import EXIT_STOPPED, LauncherError, Problem
from launcher.hosts.machine.facts import HostFacts
from launcher.hosts.nodes import board
from launcher.hosts.nodes.alike import said_of
from launcher.hosts.nodes.board import BEAT_S, Call, Card, Hearing
from launcher.hosts.nodes.join import order_of
from launcher.hosts.nodes.part import Asked, Part, begin, end_leftovers
from launcher.hosts.nodes.place import place_of
from launcher.rundir.folder import RunDir
from launcher.rundir.leave import SAVE_S

LOOK_S = 0.2  # at processes: between a rank's death and launch.py's next look the kernel still tells how it died
ASK_S = 1.0  # at the shared folder, which all nodes ask
LEADER_WAIT_S = 1800.0  # for node 0 to be there: without gang scheduling it may wait for a machine
REFUSAL_S = 30.0  # for node 0 to be there and to hear that a node takes no part


@dataclass(slots=True)
class Follower:
    """One node, for as long as its program runs."""

    run: RunDir
    node: int
    asked: Asked
    facts: dict[str, object]  # as node 0 compares them
    nonce: str = field(default_factory=board.new_nonce)
    host: str = field(default_factory=socket.gethostname)
    leader: Hearing = field(default_factory=Hearing)
    part: Part | None = None
    attempt: str = ""
    code: int | None = None
    _asked_s: float | None = None  # when the ranks here were asked to leave
    _beat: int = 0
    _next_beat_s: float = 0.0
    _next_ask_s: float = 0.0

    def follow(self) -> int:
        """The exit code. LauncherError E520 where no node 0 is heard."""
        while True:
            if self.asked.to_end and not self._leaving():
                self._end_part()
                return EXIT_STOPPED
            if self.part is not None and (code := self.part.look()) is not None:
                self._end_part(code)
            call = self._call() if time.monotonic() >= self._next_ask_s else None
            if call is not None and (code := self._obey(call)) is not None:
                return code
            if time.monotonic() >= self._next_beat_s:
                self._speak()
                self._listen()
            time.sleep(LOOK_S)

    def _leaving(self) -> bool:
        """True while the ranks here, which are asked once, may save and leave with all others.

        Nodes are often stopped together: ranks that end first would take the others' checkpoint with them.
        """
        if self.part is None or self.asked.at_once:
            return False
        if self._asked_s is None:
            if not self.run.stage(self.part.stage).listening.exists():
                return False
            self._asked_s = time.monotonic()
            self.part.ask_to_leave()
        return time.monotonic() - self._asked_s < SAVE_S

    def _call(self) -> Call | None:
        """What is asked of this very process."""
        self._next_ask_s = time.monotonic() + ASK_S
        call = board.read_call(self.run)
        return call if call is not None and call.nodes.get(str(self.node)) == self.nonce else None

    def _obey(self, call: Call) -> int | None:
        """The exit code where all is over."""
        if call.do == "end":
            self._end_part()
            return call.code
        if call.do == "stop" and call.attempt == self.attempt:
            self._end_part()
        if call.do == "stage" and call.attempt != self.attempt:
            self._end_part()
            end_leftovers(self.run, self.host)  # of a program that was killed; only now: somebody else may have had the run
            self.attempt, self.code = call.attempt, None
            slots = order_of(self.run, call.stage).slots
            self.part = begin(self.run, call.stage, node=self.node, host=self.host, slots=slots, port=call.port)
            self._speak()
        return None

    def _end_part(self, code: int | None = None) -> None:
        if self.part is not None:
            ended = self.part.end()
            self.part, self.code = None, ended if code is None else code
            self._speak()

    def _speak(self) -> None:
        self._beat += 1
        self._next_beat_s = time.monotonic() + BEAT_S
        beat, attempt, code, facts = self._beat, self.attempt, self.code, self.facts
        card = Card(node=self.node, nonce=self.nonce, host=self.host, beat=beat, attempt=attempt, code=code, facts=facts)
        board.write_card(self.run, card)

    def _listen(self) -> None:
        self.leader.hear(board.read_card(self.run, 0))
        if self.leader.silent:
            self._end_part()
        if time.monotonic() - self.leader.heard_s > LEADER_WAIT_S:
            what = f"node 0 was not heard for {LEADER_WAIT_S / 60:.0f} min"
            hint = "see whether it was started, and whether all nodes see the same folder"
            raise LauncherError(Problem(code="E520", where=str(self.run.path), what=what, hint=hint))


def follow(run: RunDir, node: int, facts: HostFacts) -> int:
    """The exit code, node 0's where it says one. `facts`: of this node, as it came."""
    asked = Asked()
    asked.listen()
    return Follower(run=run, node=node, asked=asked, facts=said_of(facts)).follow()


def say_refusal(run: RunDir, error: LauncherError, environ: Mapping[str, str] = os.environ) -> None:
    """Tell node 0 that this node takes no part, and why. Nothing where the place is not known, or the first.

    Node 0 forgets what was said before it came: the card is written until node 0 is heard, and once more.
    """
    try:
        node = place_of(environ).node
    except LauncherError:
        return
    if not node:
        return
    nonce, host, refusal = board.new_nonce(), socket.gethostname(), [problem.as_dict() for problem in error.problems]
    before, deadline_s, beat, heard = board.read_card(run, 0), time.monotonic() + REFUSAL_S, 0, False
    while not heard:
        beat += 1
        leader = board.read_card(run, 0)
        heard = leader not in (None, before) or time.monotonic() > deadline_s
        board.write_card(run, Card(node=node, nonce=nonce, host=host, beat=beat, refusal=refusal))
        if not heard:
            time.sleep(ASK_S)
