"""Every error a user can meet: a catalogue of stable codes, one printable problem, one exception that carries them.

docs/errors.md is built from CATALOGUE. Codes are an interface, wording is not. Nothing here imports anything of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeInfo:
    """What a code stands for: a title, when it appears, and what usually mends it."""

    title: str
    when: str
    remedy: str


CATALOGUE: dict[str, CodeInfo] = {}

# The first digit of a code decides the exit code (docs: README, "Exit codes").
EXIT_CODES = {"1": 2, "2": 3, "3": 2, "4": 4, "5": 5, "9": 1}
EXIT_DONE, EXIT_BUG, EXIT_USAGE, EXIT_NO_PLAN, EXIT_CLUSTER, EXIT_RUN, EXIT_STOPPED = 0, 1, 2, 3, 4, 5, 6


def _code(code: str, *, title: str, when: str, remedy: str) -> None:
    assert code not in CATALOGUE, code
    CATALOGUE[code] = CodeInfo(title=title, when=when, remedy=remedy)


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
        return f"{head}\n  hint: {self.hint}" if self.hint else head

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


# --- E1xx: the job file and the command line -------------------------------------------------------------------
_code(
    "E101",
    title="file not readable",
    when="The job file does not exist, is a folder or may not be read.",
    remedy="Check the path and its permissions.",
)
_code(
    "E102",
    title="not YAML",
    when="The text cannot be parsed as one YAML document of plain values.",
    remedy="Mend the line that is named; tabs, several documents, tags, anchors and aliases are refused.",
)
_code("E103", title="duplicate key", when="The same key stands twice in one mapping.", remedy="Keep one of the two lines.")
_code(
    "E104", title="unknown key", when="A key is not part of the job file.", remedy="Use the suggested key or remove the line."
)
_code("E105", title="wrong type", when="A value has another type than the field.", remedy="Write a value of the named type.")
_code(
    "E106",
    title="value out of range",
    when="A value is of the right type but outside of what can work.",
    remedy="Use a value inside the named bounds.",
)
_code("E107", title="missing field", when="A field that only the user can know is absent.", remedy="Add the field.")
_code("E108", title="unknown value", when="A value is not one of the allowed words.", remedy="Use one of the listed words.")
_code(
    "E109",
    title="fields exclude each other",
    when="Two fields contradict each other or one is needed by the other.",
    remedy="Keep the one that you mean.",
)
_code(
    "E110",
    title="stage chain is broken",
    when="`from` or `reward` names no stage, a later one, itself, or one that hands on the wrong kind of model.",
    remedy="Name an earlier stage of the right kind.",
)
_code("E111", title="usage", when="The command line is not understood.", remedy="See `launcher COMMAND --help`.")
_code(
    "E112",
    title="override not understood",
    when="A --set override names no field or has no value.",
    remedy="Write --set path.to.field=value, with stages by their name.",
)
_code(
    "E113",
    title="no such run",
    when="RUN is no run folder, run id or job name below the runs folder.",
    remedy="`launcher status` lists the runs that are there.",
)

# --- E2xx: the plan ------------------------------------------------------------------------------------------------

# --- E3xx: DeepSpeed configs ---------------------------------------------------------------------------------------

# --- E4xx: the machine or cluster is not ready ---------------------------------------------------------------------

# --- E50x-E52x: a run (launch, ranks, artifacts) -------------------------------------------------------------------

# --- E53x-E54x: data and tokenizer, found by prepare ---------------------------------------------------------------

# --- E55x-E56x: training stages on the nodes -----------------------------------------------------------------------

# --- E9xx: ours ----------------------------------------------------------------------------------------------------
_code(
    "E901",
    title="a bug in launcher",
    when="Something failed that is not the user's doing.",
    remedy="The traceback is in the file that is named; please report it.",
)
