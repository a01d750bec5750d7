"""`python -m launcher.hosts gather RUN STAGE`, on node 0: all nodes of one stage, called together and ended together. DO.

What the fleet is over ssh, over the shared folder alone: it ends as the stage ends, and leaves the same files for whoever
judges: hosts.json, deaths/, problems/fleet.json. The other nodes follow (follow.py).
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from launcher.backends.fleet_order import FleetOrder
from launcher.errors import EXIT_DONE, EXIT_RUN, LauncherError, Problem
from launcher.hosts.machine.facts import HERE, HostFacts
from launcher.hosts.machine.look import look
from launcher.hosts.machine.ports import EVERY_CARD, check_port, free_port
from launcher.hosts.nodes import board
from launcher.hosts.nodes.alike import unlike_node_0, without_gpus
from launcher.hosts.nodes.board import Call, Card, Hearing
from launcher.hosts.nodes.follow import ASK_S
from launcher.hosts.nodes.join import check_part, order_of
from launcher.hosts.nodes.part import Asked, Part, begin
from launcher.hosts.nodes.place import place_of
from launcher.rundir.events import append_event
from launcher.rundir.folder import RunDir, write_json

LOOK_S = 0.2  # at processes; ASK_S: at the shared folder (follow.py)
COME_S = 1800.0  # without gang scheduling a pod may wait for a machine
LAST_WORDS_S = 3.0  # from the first failure to the end of the others: they may still tell what they saw
END_S = 45.0  # that others take to see a call, to end their ranks and to say so
TERMINATED = 128 + signal.SIGTERM


@dataclass(slots=True)
class Other:
    """A node that follows, as it is heard."""

    node: int
    hearing: Hearing = field(default_factory=Hearing)
    nonce: str = ""  # of the process that was called
    state: str = "not there"
    code: int | None = None
    lost: str = ""
    refusal: list[dict[str, str]] = field(default_factory=list)  # its problems, where it is lost because it takes no part

    @property
    def over(self) -> bool:
        return self.code is not None or bool(self.lost)

    @property
    def failed(self) -> bool:
        return bool(self.lost) or self.code not in (None, 0)

    @property
    def host(self) -> str:
        return self.hearing.card.host if self.hearing.card else ""

    @property
    def place(self) -> str:
        return f"node {self.node}" + (f" ({self.host})" if self.host else "")

    def refuse(self, problems: list[dict[str, str]]) -> None:
        self.refusal, self.lost = problems, problems[0].get("what", "takes no part")


@dataclass(slots=True)
class Gathering:
    """One attempt at one stage."""

    run: RunDir
    order: FleetOrder
    asked: Asked
    others: list[Other]
    facts: HostFacts  # of this node
    attempt: str = field(default_factory=lambda: secrets.token_hex(8))
    port: int = 0
    part: Part | None = None
    code: int | None = None  # of this node's launch.py
    controller: int = field(default_factory=os.getppid)
    cause: int | None = None  # the first code that is not 0, of whoever failed before anybody was told to end
    _next_ask_s: float = 0.0

    def gather(self) -> int:
        """The exit code: 0 where launch.py ended so on every node."""
        if not self._come():
            return self._exit_code()
        if self.order.port is not None:
            check_port(self.order.port)
        self.port = self.order.port or free_port(EVERY_CARD)
        self._call("stage")
        stage, slots = self.order.stage, self.order.slots
        self.part = begin(self.run, stage, node=0, host=self.order.hosts[0], slots=slots, port=self.port)
        while not self._is_to_end() and not self._over() and not self._failed():
            time.sleep(LOOK_S)
            self._look()
        self._end()
        return self._exit_code()

    def _come(self) -> bool:
        """Until every other node has spoken. False where one has not or takes no part, or the end is asked for."""
        deadline_s = time.monotonic() + COME_S
        while any(not other.nonce for other in self.others):
            if self._is_to_end():
                return False
            for other in self.others:
                other.hearing.hear(board.read_card(self.run, other.node))
                card = other.hearing.card
                if card is not None and card.nonce != other.nonce:  # come, or started anew while others were waited for
                    other.nonce = card.nonce
                    self._greet(other, card)
            if any(other.lost for other in self.others):
                return False
            if time.monotonic() > deadline_s:
                self._give_up()
                return False
            time.sleep(ASK_S)
        return True

    def _is_to_end(self) -> bool:
        """Asked to; or the controller was killed, and nobody would judge what comes of it."""
        self.asked.to_end = self.asked.to_end or os.getppid() != self.controller
        return self.asked.to_end

    def _give_up(self) -> None:
        for other in self.others:
            if not other.nonce:
                other.lost = f"did not come within {COME_S / 60:.0f} min"
                self._change(other, "lost", what=other.lost)

    def _greet(self, other: Other, card: Card) -> None:
        """Take the node in, or not: it says so itself, or has other versions, which train to the end and something else."""
        unlike = [] if card.refusal else unlike_node_0(card.facts, self.facts, where=other.place)
        if refusal := card.refusal or [one.problem.as_dict() for one in unlike if one.stops]:
            other.refuse(refusal)
            self._change(other, "lost", what=other.lost)
            return
        for one in unlike:
            sys.stderr.write(one.problem.text() + "\n")
            self._note("host.odd", **one.as_dict())
        self._change(other, "ready")

    def _call(self, do: str) -> None:
        nodes = {str(other.node): other.nonce for other in self.others}
        kind: Literal["stage", "stop"] = "stop" if do == "stop" else "stage"
        call = Call(do=kind, nodes=nodes, attempt=self.attempt, stage=self.order.stage, port=self.port)
        board.write_call(self.run, call)

    # --- while it runs ---

    def _look(self) -> None:
        if self.part is not None and self.code is None:
            self.code = self.part.look()
        if time.monotonic() < self._next_ask_s:
            return
        self._next_ask_s = time.monotonic() + ASK_S
        for other in self.others:
            if not other.over:
                self._hear(other, board.read_card(self.run, other.node))

    def _hear(self, other: Other, card: Card | None) -> None:
        other.hearing.hear(card)
        if card is not None and card.refusal:
            other.refuse(card.refusal)
        elif card is not None and card.nonce != other.nonce:
            other.lost = "was started anew in the middle of the stage"
        elif other.hearing.silent:
            other.lost = f"was silent for {board.SILENT_S:.0f} s"
        elif card is not None and card.attempt == self.attempt:
            other.code = card.code
            if other.state != "running":
                self._change(other, "running")
        if other.lost:
            self._change(other, "lost", what=other.lost)
        elif other.code is not None:
            self._change(other, "ended", code=other.code)

    def _over(self) -> bool:
        return self.code is not None and all(other.over for other in self.others)

    def _failed(self) -> bool:
        return self.code not in (None, 0) or any(other.failed for other in self.others)

    # --- at the end ---

    def _end(self) -> None:
        """Every node is told to end, and has told that it did, or is given up."""
        if not self._over() and not self.asked.to_end:
            self._wait(LAST_WORDS_S)
        self.cause = next((code for code in self._codes() if code), None)
        if not self._over():
            self._call("stop")
        if self.part is not None:
            ended = self.part.end()
            self.code = ended if self.code is None else self.code
        self._wait(END_S)
        for other in self.others:
            if not other.over:
                other.lost = f"did not say within {END_S:.0f} s that its ranks have ended"
                self._change(other, "lost", what=other.lost)

    def _wait(self, wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        while not self._over() and time.monotonic() < deadline_s:
            time.sleep(LOOK_S)
            self._look()

    def _exit_code(self) -> int:
        problems = [problem for other in self.others if other.lost for problem in other.refusal or [_lost(other).as_dict()]]
        if problems:
            told = {"t": time.time(), "problems": problems}
            write_json(self.run.stage(self.order.stage).fleet_problem, told)
            return EXIT_RUN
        if self.asked.to_end:
            return TERMINATED
        return self.cause or (EXIT_RUN if any(code != 0 for code in self._codes()) else EXIT_DONE)

    def _codes(self) -> list[int | None]:
        return [self.code, *(other.code for other in self.others)]

    def _change(self, other: Other, state: str, **fields: object) -> None:
        other.state = state
        stage, host = self.order.stage, other.host or f"node {other.node}"
        self._note(f"host.{state}", stage=stage, host=host, node=other.node, **fields)
        with suppress(OSError):
            states = {one.host or f"node {one.node}": one.state for one in self.others}
            write_json(self.run.stage(stage).hosts, {"t": time.time(), "hosts": states})

    def _note(self, kind: str, **fields: object) -> None:
        with suppress(OSError):  # a full disk does not end the ranks
            append_event(self.run.events, kind, **fields)


def _lost(other: Other) -> Problem:
    hint = "see what the scheduler says of its pod or machine; the stage goes on from its last checkpoint"
    return Problem(code="E520", where=other.place, what=other.lost, hint=hint)


def gather(run: RunDir, stage: str, environ: Mapping[str, str] = os.environ) -> int:
    asked = Asked()
    asked.listen()
    order = order_of(run, stage)
    try:
        check_part(place_of(environ), order)
        others = [Other(node) for node in range(1, len(order.hosts))]
        facts = look(HERE, folder=run.path, environ=environ)
        if order.env.get("DS_ACCELERATOR") != "cuda":
            facts = without_gpus(facts)
        return Gathering(run=run, order=order, asked=asked, others=others, facts=facts).gather()
    except LauncherError as error:
        told = {"t": time.time(), "problems": [problem.as_dict() for problem in error.problems]}
        write_json(run.stage(stage).fleet_problem, told)
        return error.exit_code
