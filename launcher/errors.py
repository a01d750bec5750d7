"""One printable problem, and the exception that carries all of them to the user. What the codes mean: launcher/codes/."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from launcher.codes import CATALOGUE

# Control characters but the newline, and the marks that reverse the direction of text: a terminal would obey them.
_UNPRINTED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with every character that a terminal might obey written as an escape: users' text is shown, never executed."""
    return _UNPRINTED.sub(lambda match: f"\\x{ord(match[0]):02x}" if ord(match[0]) < 256 else f"\\u{ord(match[0]):04x}", text)


# The first digit of a code decides the exit code (docs: README, "Exit codes").
EXIT_CODES = {"1": 2, "2": 3, "3": 2, "4": 4, "5": 5, "9": 1}
EXIT_DONE, EXIT_BUG, EXIT_USAGE, EXIT_NO_PLAN, EXIT_CLUSTER, EXIT_RUN, EXIT_STOPPED = 0, 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: where, which rule with the value got, and the nearest thing that would work.

    `where` is a place a reader can open: `job.yaml:12:3`, a file, a host, a stage. Empty where there is none.
    """

    code: str
    where: str
    what: str
    hint: str

    def __post_init__(self) -> None:
        assert self.code in CATALOGUE, f"{self.code} is not in the catalogue"

    def text(self) -> str:
        """Two lines: `where [code] what` and an indented hint."""
        head = f"{self.where} [{self.code}] {self.what}".lstrip()
        return printable(f"{head}\n  hint: {self.hint}" if self.hint else head)

    def as_dict(self) -> dict[str, str]:
        return {"code": self.code, "where": self.where, "what": self.what, "hint": self.hint}


class LauncherError(Exception):
    """Problems for the user, in the order found. Raised once with all of them, never one at a time."""

    def __init__(self, problems: Problem | Iterable[Problem]):
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        assert self.problems
        super().__init__(self.text())

    def text(self) -> str:
        return "\n".join(problem.text() for problem in self.problems)

    @property
    def exit_code(self) -> int:
        """The exit code of the earliest kind of problem: a wrong job file outranks a plan that does not fit."""
        return EXIT_CODES[min(problem.code[1] for problem in self.problems)]
