"""Columns -> the shape of a stage's data, and which column holds what. Pure: no file is read here.

| shape             | columns                                  | serves          |
| text              | text                                     | pretrain, sft with loss_on: all |
| prompt_completion | prompt, completion                       | sft, ppo        |
| instruction       | instruction, [input], output             | sft, ppo        |
| messages          | messages or conversations                | sft, ppo        |
| preference        | [prompt], chosen, rejected, [group]      | reward, dpo, ppo |
| prompts           | prompt                                   | ppo             |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from launcher.errors import LauncherError, Problem
from launcher.spec.combine import SHAPES_OF_KIND
from launcher.spec.data import DataSpec, Shape
from launcher.spec.stages import Kind

NEEDED: dict[Shape, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "messages": ("messages",),
    "preference": ("chosen", "rejected"),
    "prompts": ("prompt",),
}
OPTIONAL: dict[Shape, tuple[str, ...]] = {"instruction": ("input",), "preference": ("prompt", "group")}
OTHER_NAMES = {"messages": "conversations"}  # ShareGPT's name, taken where ours is absent
OUR_NAMES = tuple(dict.fromkeys(name for names in [*NEEDED.values(), *OPTIONAL.values()] for name in names))


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of a stage's data, and which column of the file holds what."""

    shape: Shape
    columns: Mapping[str, str]  # our name -> name in the file, also where both are the same

    def needed(self) -> list[str]:
        return [self.columns[name] for name in NEEDED[self.shape]]


def layout_of(kind: Kind, data: DataSpec, columns: Sequence[str], *, loss_on_all: bool, where: str, file: str) -> Layout:
    """The layout that the job asks for or that the columns tell. LauncherError with everything that does not fit."""
    problems = _column_problems(data, columns, where, file)
    if problems:
        raise LauncherError(problems)
    names = _our_names(data, columns)
    allowed = [shape for shape in SHAPES_OF_KIND[kind] if not (kind == "sft" and shape == "text") or loss_on_all]
    shape = _asked_shape(kind, data, allowed, where) if data.shape else _told_shape(kind, allowed, names, columns, where, file)
    missing = [name for name in NEEDED[shape] if name not in names]
    if missing:
        raise LauncherError([_missing(name, shape, columns, where, file) for name in missing])
    used = {name: names[name] for name in (*NEEDED[shape], *OPTIONAL.get(shape, ())) if name in names}
    if unused := sorted(set(data.columns) - set(used)):
        what = f"data.columns maps {', '.join(unused)}, which rows of shape {shape} do not use"
        hint = f"they use {', '.join((*NEEDED[shape], *OPTIONAL.get(shape, ())))}; remove the others"
        raise LauncherError(Problem(code="E532", where=where, what=what, hint=hint))
    return Layout(shape, used)


def missing_columns(layout: Layout, columns: Sequence[str], *, where: str, file: str) -> list[Problem]:
    """What another file or split of the same data lacks: a held-out split without `rejected` is found before training."""
    present = set(columns)
    return [
        _missing(ours, layout.shape, columns, where, file)
        for ours in NEEDED[layout.shape]
        if layout.columns[ours] not in present
    ]


def _column_problems(data: DataSpec, columns: Sequence[str], where: str, file: str) -> list[Problem]:
    problems = []
    for name in sorted({name for name in columns if columns.count(name) > 1}):
        what = f"{file} has the column {name!r} twice; its columns are {listed(columns)}"
        problems.append(Problem(code="E532", where=where, what=what, hint="rename one of the two in the file"))
    for ours, theirs in data.columns.items():
        if ours not in OUR_NAMES:
            close = get_close_matches(ours, OUR_NAMES, n=1)
            what = f"data.columns has {ours!r}, which is none of our names: {', '.join(OUR_NAMES)}"
            problems.append(Problem(code="E532", where=where, what=what, hint=_meant(close) or "use one of them"))
        if theirs not in columns:
            what = f"data.columns maps {ours} to {theirs!r}, which {file} does not have; its columns are {listed(columns)}"
            hint = _meant(get_close_matches(theirs, columns, n=1)) or "use one of its columns"
            problems.append(Problem(code="E532", where=where, what=what, hint=hint))
    return problems


def _our_names(data: DataSpec, columns: Sequence[str]) -> dict[str, str]:
    """Our name -> column, for all of our names that the file can serve."""
    names = {name: name for name in OUR_NAMES if name in columns}
    names |= {ours: theirs for ours, theirs in OTHER_NAMES.items() if theirs in columns and ours not in names}
    return names | dict(data.columns)


def _asked_shape(kind: Kind, data: DataSpec, allowed: Sequence[Shape], where: str) -> Shape:
    assert data.shape is not None
    if data.shape in allowed:
        return data.shape
    if kind == "sft" and data.shape == "text":
        what = "plain text does not say where its answers are, and the stage has loss_on: answers"
        raise LauncherError(Problem(code="E533", where=where, what=what, hint="loss_on: all, or data of shape messages"))
    what = f"rows of shape {data.shape} cannot serve a stage of kind {kind}"
    raise LauncherError(Problem(code="E533", where=where, what=what, hint=f"it takes {' or '.join(SHAPES_OF_KIND[kind])}"))


def _told_shape(
    kind: Kind, allowed: Sequence[Shape], names: Mapping[str, str], columns: Sequence[str], where: str, file: str
) -> Shape:
    """The one allowed shape whose columns are there. A shape whose columns are part of another one's does not compete."""
    fitting = [shape for shape in allowed if all(name in names for name in NEEDED[shape])]
    told = [shape for shape in fitting if not any(_covers(other, shape) for other in fitting if other != shape)]
    if len(told) == 1:
        return told[0]
    if told:
        what = f"{file} fits several shapes: {', '.join(told)}; its columns are {listed(columns)}"
        raise LauncherError(Problem(code="E533", where=where, what=what, hint=f"data.shape: {told[0]}, or another of them"))
    if kind == "sft" and "text" in names:
        what = f"{file} has plain text, which does not say where its answers are, and the stage has loss_on: answers"
        raise LauncherError(Problem(code="E533", where=where, what=what, hint="loss_on: all, or data of shape messages"))
    wanted = " or ".join("+".join(NEEDED[shape]) for shape in allowed)
    close = [match for shape in allowed for name in NEEDED[shape] for match in get_close_matches(name, columns, n=1)]
    what = f"{file} has the columns {listed(columns)}; a stage of kind {kind} needs {wanted}"
    hint = f"map them with data.columns: {{ours: theirs}}{f', for example from {close[0]}' if close else ''}"
    raise LauncherError(Problem(code="E532", where=where, what=what, hint=hint))


def _covers(shape: Shape, other: Shape) -> bool:
    return set(NEEDED[other]) < {*NEEDED[shape], *OPTIONAL.get(shape, ())}


def _missing(name: str, shape: Shape, columns: Sequence[str], where: str, file: str) -> Problem:
    close = get_close_matches(name, columns, n=1)
    what = f"{file} has no column {name!r}, which rows of shape {shape} need; its columns are {listed(columns)}"
    hint = f"data.columns: {{{name}: {close[0]}}}" if close else f"map one of its columns: data.columns: {{{name}: ...}}"
    return Problem(code="E532", where=where, what=what, hint=hint)


def listed(names: Sequence[str] | Mapping[str, object]) -> str:
    shown = ", ".join(list(names)[:20])
    return f"{shown}, …" if len(names) > 20 else shown or "none"


def _meant(close: Sequence[str]) -> str:
    return f"did you mean {close[0]}?" if close else ""
