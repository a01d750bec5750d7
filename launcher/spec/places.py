"""Places: from a field's path to where the user wrote it, and to how messages call it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from launcher.errors import Problem

FieldPath = tuple[str | int, ...]
Mark = tuple[int, int]  # line and column, both from 1


def value_at(raw: object, path: FieldPath) -> object:
    """The plain value at `path`, None where there is none."""
    for step in path:
        if isinstance(raw, dict):
            raw = raw.get(str(step))
        elif isinstance(raw, list) and isinstance(step, int) and step < len(raw):
            raw = raw[step]
        else:
            return None
    return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem of one field before it is turned into text: its path, and the other fields that it is about."""

    code: str
    path: FieldPath
    what: str
    hint: str
    also: tuple[FieldPath, ...] = ()
    mark: Mark | None = None  # None: the place of the field


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where each field of one job file stands."""

    file_name: str
    marks: Mapping[FieldPath, Mark]
    overridden: Mapping[FieldPath, str] = field(default_factory=dict)  # path -> `--set stages.sft.lr`
    stage_names: Sequence[str | None] = ()  # None: no name, or not the only one of that name

    def place_of(self, path: FieldPath) -> str:
        """`job.yaml:12:3` of the field, or of the nearest block around it that is written; `--set a.b` where overridden."""
        for end in range(len(path), 0, -1):
            known = path[:end]
            if known in self.overridden:
                return self.overridden[known]
            if known in self.marks:
                line, column = self.marks[known]
                return f"{self.file_name}:{line}:{column}"
        return self.file_name

    def field_text(self, path: FieldPath) -> str:
        """`stages.sft.data.source`: as --set takes it."""
        words = [str(step) for step in path]
        if len(path) > 1 and path[0] == "stages" and isinstance(path[1], int) and path[1] < len(self.stage_names):
            words[1] = self.stage_names[path[1]] or words[1]
        return ".".join(words)

    def path_of(self, field_text: str) -> FieldPath:
        """The inverse of field_text: stages by name become stages by number."""
        path: list[str | int] = list(field_text.split("."))
        if len(path) > 1 and path[0] == "stages" and path[1] in self.stage_names:
            path[1] = self.stage_names.index(str(path[1]))
        return tuple(int(step) if isinstance(step, str) and step.isascii() and step.isdigit() else step for step in path)

    def problem(self, finding: Finding) -> Problem:
        """The finding as the user reads it: placed, and begun with the field's name."""
        where = self.place_of(finding.path)
        if finding.mark:
            where = f"{self.file_name}:{finding.mark[0]}:{finding.mark[1]}"
        name = self.field_text(finding.path)
        what = f"{name}: {finding.what}" if name else finding.what
        return Problem(code=finding.code, where=where, what=what, hint=finding.hint)

    def located(self, problem: Problem) -> Problem:
        """A problem whose `where` is a field, such as `cluster.slots`, moved to the place where that field is written."""
        path = self.path_of(problem.where)
        if path[0] not in (
            "name",
            "seed",
            "model",
            "cluster",
            "parallel",
            "precision",
            "tf32",
            "batch",
            "tensorboard",
            "stages",
        ):
            return problem
        return replace(problem, where=self.place_of(path), what=f"{problem.where}: {problem.what}")

    def problems(self, findings: Sequence[Finding]) -> tuple[Problem, ...]:
        """All findings from the top of the file to its end, overrides last, each once."""
        ordered = sorted(findings, key=lambda finding: self._order(finding))
        return tuple(dict.fromkeys(self.problem(finding) for finding in ordered))

    def _order(self, finding: Finding) -> tuple[bool, Mark]:
        for end in range(len(finding.path), 0, -1):
            known = finding.path[:end]
            if known in self.overridden:
                return True, (list(self.overridden).index(known), 0)
            if known in self.marks:
                return False, finding.mark or self.marks[known]
        return False, finding.mark or (0, 0)
