"""Host: what a fleet knows of one host. States: what readers of hosts.json and events.jsonl see of all. DO, small files."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from launcher.errors import Problem
from launcher.hosts.connection.link import Link
from launcher.hosts.files.disk import CONTROLLER
from launcher.rundir.events import append_event
from launcher.rundir.folder import RunDir, write_json


@dataclass(slots=True)
class Host:
    """What is known of one host. `state` is for readers of hosts.json."""

    link: Link
    state: str = "connecting"
    ready: Mapping[str, object] | None = None
    code: int | None = None
    problem: Problem | None = None
    orphaned: bool = False  # the keeper that held its ranks is gone, and another one ends them
    silence: str = ""  # why the connection is down, while it is
    done: dict[str, str] = field(default_factory=dict)  # markers of ranks whose files are still to be fetched

    @property
    def disk(self) -> str:
        """Who claimed the disk that the run folder is on there."""
        return str(self.ready["disk"]) if self.ready else CONTROLLER

    @property
    def ranks(self) -> range:
        first = self.link.order.node * self.link.order.slots
        return range(first, first + self.link.order.slots)

    @property
    def over(self) -> bool:
        return self.code is not None or self.problem is not None

    @property
    def failed(self) -> bool:
        return self.problem is not None or self.code not in (None, 0)


@dataclass(frozen=True, slots=True)
class States:
    """The voice of one fleet."""

    run: RunDir
    stage: str
    hosts: Sequence[Host]

    def change(self, host: Host, state: str, **fields: object) -> None:
        host.state = state
        named = {"stage": self.stage, "host": host.link.host, **fields}
        with suppress(OSError):  # a full disk does not end the ranks
            append_event(self.run.events, f"host.{state.replace(' ', '_')}", **named)
            states = {one.link.host: one.state for one in self.hosts}
            write_json(self.run.stage(self.stage).hosts, {"t": time.time(), "hosts": states})


def say(text: str) -> None:
    """A line of the stage's launcher.log."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
