"""events.jsonl and stderr: what the controller does, said twice, once for programs and once for people. DO.

A full disk or a closed terminal does not end a run: what cannot be written is said on the other one, once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from launcher.errors import Problem, printable
from launcher.rundir.events import append_event
from launcher.rundir.folder import RunDir


@dataclass(slots=True)
class Journal:
    """The voice of one controller."""

    run: RunDir
    quiet: bool = False
    degraded: bool = False

    def event(self, kind: str, **fields: object) -> None:
        try:
            append_event(self.run.events, kind, **fields)
        except OSError as error:
            if not self.degraded:
                self.say(f"events.jsonl cannot be written ({error.strerror}); the run goes on")
            self.degraded = True

    def say(self, text: str) -> None:
        """One line for people."""
        if self.quiet:
            return
        try:
            print(printable(text), file=sys.stderr, flush=True)  # noqa: T201 - the talk of `run`
        except OSError:
            self.quiet = True  # the terminal was closed

    def problems(self, kind: str, problems: list[Problem], **fields: object) -> None:
        self.event(kind, problems=[problem.as_dict() for problem in problems], **fields)
