"""Symptom: what is wrong with a host, and whether a run can start all the same. Nouns only."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """One row's part of what `doctor` finds. A symptom that does not stop a run is told, and the run starts."""

    host: str
    problem: Problem
    stops: bool = True

    def as_dict(self) -> dict[str, object]:
        return {**self.problem.as_dict(), "stops": self.stops}


def symptom(host: str, code: str, what: str, hint: str, *, stops: bool = True) -> Symptom:
    return Symptom(host=host, problem=Problem(code=code, where=host, what=what, hint=hint), stops=stops)
