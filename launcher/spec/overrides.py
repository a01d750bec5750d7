"""`--set stages.sft.lr=1e-5`: one value of the job file said on the command line. Pure: plain values in, plain values out."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import NoReturn

from launcher.errors import LauncherError, Problem
from launcher.spec.places import FieldPath, value_at
from launcher.spec.wording import listed, nearest, shown
from launcher.spec.yaml_source import read_yaml


def stage_names(value: object) -> tuple[str | None, ...]:
    """How each stage of a raw file is called: by its name or kind, None where it has none or shares it."""
    stages = value.get("stages") if isinstance(value, dict) else None
    names = [_name_of(stage) for stage in stages] if isinstance(stages, list) else []
    return tuple(name if names.count(name) == 1 else None for name in names)


def _name_of(stage: object) -> str | None:
    name = (stage.get("name") or stage.get("kind")) if isinstance(stage, dict) else None
    return name if isinstance(name, str) and "." not in name else None


def apply_overrides(value: object, overrides: Sequence[str]) -> tuple[object, dict[FieldPath, str], list[Problem]]:
    """The file's values with every override put in, the paths that came from one, and those that could not be put in."""
    value = copy.deepcopy(value)
    places: dict[FieldPath, str] = {}
    problems: list[Problem] = []
    for text in overrides:
        try:
            places.update(dict.fromkeys(_apply(value, text), f"--set {text.partition('=')[0].strip()}"))
        except LauncherError as error:
            problems += error.problems
    return value, places, problems


def _apply(value: object, text: str) -> list[FieldPath]:
    """Put one value in; the paths that now come from the command line: the field, and blocks made for it."""
    name, equals, written = text.partition("=")
    steps = re.sub(r"\[(\d+)\]", r".\1", name.strip()).split(".")
    if not equals or not all(steps):
        _refuse(name, f"{shown(text)} is not PATH=VALUE", "write --set path.to.field=value, such as --set stages.sft.lr=1e-5")
    new = _value_of(name, written)
    path: FieldPath = ()
    made: list[FieldPath] = []
    at = value
    for step in steps[:-1]:
        key = _key(at, step, value, name)
        path = (*path, key)
        below = value_at(at, (key,))
        if not isinstance(below, dict | list):  # nothing there, or `auto`
            below = {}
            at[key] = below  # type: ignore[index]
            made.append(path)
        at = below
    key = _key(at, steps[-1], value, name)
    at[key] = new  # type: ignore[index]
    return [*made, (*path, key)]


def _value_of(name: str, written: str) -> object:
    """A scalar or a flow value: `1e-5`, `[0.9, 0.95]`, `{accuracy: 0.7}`."""
    if not written.strip():
        _refuse(name, "has no value", "write --set path.to.field=value; null takes a value away")
    try:
        source = read_yaml(written, f"--set {name}")
    except LauncherError as error:
        _refuse(name, f"{shown(written)}: {error.problems[0].what}", "put text with special characters in quotes")
    for finding in source.findings:
        _refuse(name, f"{shown(written)}: {finding.what}", finding.hint)
    return source.value


def _key(at: object, step: str, whole: object, name: str) -> str | int:
    return _index(at, step, whole, name) if isinstance(at, list) else step


def _index(at: list[object], step: str, whole: object, name: str) -> int:
    if step.isascii() and step.isdigit() and int(step[:9]) < len(at):
        return int(step)
    names = stage_names(whole) if isinstance(whole, dict) and at is whole.get("stages") else ()
    if step in names:
        return names.index(step)
    known = [text or str(index) for index, text in enumerate(names)] or [f"0 to {len(at) - 1}"]
    meant = nearest(step, known)
    hint = f"did you mean {meant}?" if meant else f"here stand {listed(known)}"
    what = f"there is no {'stage' if names else 'element'} {shown(step)}"
    raise LauncherError(Problem(code="E112", where=f"--set {name}", what=what, hint=hint))


def _refuse(name: str, what: str, hint: str) -> NoReturn:
    raise LauncherError(Problem(code="E112", where=f"--set {name}", what=what, hint=hint)) from None
