"""Text of a foreign DeepSpeed config -> every problem with its place: what DeepSpeed refuses, and what it accepts silently.

DERIVE, pure. Keys are judged in lint_keys.py, values and combinations in lint_values.py. Codes from E350 on are warnings.
"""

from __future__ import annotations

from launcher.dsconfig.finding import Finding, text_of
from launcher.dsconfig.jsontext import JsonText, parse_json
from launcher.dsconfig.keys import NEWEST, SCHEMAS
from launcher.dsconfig.lint_keys import KEY_RULES
from launcher.dsconfig.lint_values import VALUE_RULES
from launcher.errors import LauncherError, Problem

FIRST_WARNING = "E350"


def lint_config(text: str, *, file_name: str, version: str = NEWEST) -> list[Problem]:
    """Every problem in the order of the file. Text that is no JSON object gives that one problem."""
    try:
        parsed = parse_json(text, file_name)
    except LauncherError as error:
        return list(error.problems)
    assert isinstance(parsed.value, dict)
    schema = SCHEMAS[version]
    findings = [_duplicate(path, offset) for path, offset in parsed.duplicates]
    findings += [finding for rule in KEY_RULES for finding in rule(parsed.value, schema)]
    findings += [finding for rule in VALUE_RULES for finding in rule(parsed.value, schema)]
    return [_problem(parsed, finding) for finding in sorted(findings, key=lambda finding: _order(parsed, finding))]


def is_warning(problem: Problem) -> bool:
    """The config does what it says, but a reader should know something."""
    return problem.code.startswith("E3") and problem.code > FIRST_WARNING


def _duplicate(path: tuple[str | int, ...], offset: int) -> Finding:
    what = "stands twice in one object; DeepSpeed stops, transformers and accelerate keep the last"
    return Finding(code="E302", path=path, what=what, hint="keep one of the two", offset=offset)


def _order(parsed: JsonText, finding: Finding) -> tuple[int, str]:
    return finding.offset if finding.offset is not None else parsed.places.get(finding.path, 0), finding.code


def _problem(parsed: JsonText, finding: Finding) -> Problem:
    where = parsed.place(finding.path) if finding.offset is None else parsed.place_at(finding.offset)
    name = text_of(finding.path)
    return Problem(code=finding.code, where=where, what=f"{name}: {finding.what}" if name else finding.what, hint=finding.hint)
