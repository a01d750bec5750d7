"""Text of a YAML file -> plain values, and where each of them stands. ASK, pure: no file is opened here.

Stricter than YAML on purpose. One document of mappings, lists and scalars; no anchors, aliases, merge keys or tags; every
key once. Plain scalars follow the core schema of YAML 1.2: `1e-5` is a number, while NO, on, 0777 and 12:30:00 stay text.
The tree is built from the parser's events, one by one: a bomb is refused at its 33rd level or its 10,001st node.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from launcher.errors import LauncherError, Problem
from launcher.spec.places import FieldPath, Finding, Mark
from launcher.spec.wording import shown

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_DIGITS = 400  # more than a float can hold; int() itself refuses 4300

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML has it: ten times as fast
_BOMS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\xef\xbb\xbf", "UTF-8 with a byte order mark"))
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff\ud800-\udfff]")

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_BASED = re.compile(r"0o[0-7]+$|0x[0-9a-fA-F]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")


@dataclass(slots=True)
class YamlSource:
    """Plain values of one text. `places`: of a field its key, of a list's element its start. Complete once read."""

    value: object = None
    places: dict[FieldPath, Mark] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def decode(data: bytes, file_name: str) -> str:
    """The text of a job file: UTF-8 without byte order mark, at most 1 MiB."""
    if len(data) > MAX_BYTES:
        what = f"more than {MAX_BYTES:,} bytes are no job file"
        _refuse(file_name, what, "name data files, do not paste them in")
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            _refuse(f"{file_name}:1:1", f"the file is {encoding}", "save it as plain UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place_at(data[: error.start].decode("utf-8"), error.start)
        _refuse(f"{file_name}:{place}", f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as plain UTF-8")


def read_yaml(text: str, file_name: str) -> YamlSource:
    """The one document in `text`. LauncherError E102 where the text as a whole cannot be read."""
    control = _CONTROL.search(text)
    if control:
        what = f"character U+{ord(control.group()):04X} may not stand in YAML text"
        _refuse(f"{file_name}:{_place_at(text, control.start())}", what, "remove it")
    source = YamlSource()
    parser = _PARSER(text)
    try:
        _Reader(parser, file_name, source).document()
    except yaml.MarkedYAMLError as error:
        _refuse_syntax(error, text, file_name)
    finally:
        parser.dispose()
    return source


class _Reader:
    """Walks the parser's events once."""

    def __init__(self, parser: Any, file_name: str, source: YamlSource):
        self.parser, self.file_name, self.source, self.num_nodes = parser, file_name, source, 0

    def document(self) -> None:
        self.parser.get_event()  # stream start
        if self.parser.check_event(yaml.StreamEndEvent):
            _refuse(self.file_name, "the file is empty", "`launcher init` writes one to start from")
        self.parser.get_event()  # document start
        self.source.value = self.node(self.parser.get_event(), (), depth=1)
        self.parser.get_event()  # document end
        following = self.parser.get_event()
        if not isinstance(following, yaml.StreamEndEvent):
            self.stop(following, "a second document starts here", "one file holds one job: remove all below the `---`")

    def node(self, event: Any, path: FieldPath, *, depth: int) -> object:
        self.check(event, depth)
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path, depth)
        return self.scalar(event, path)

    def check(self, event: Any, depth: int) -> None:
        """Refuse what a job file has no use for and what makes small texts big."""
        self.num_nodes += 1
        if isinstance(event, yaml.AliasEvent):
            self.stop(event, f"alias *{event.anchor} is not allowed", "write the value out")
        if event.anchor is not None:
            self.stop(event, f"anchor &{event.anchor} is not allowed", "write the value out where it is needed")
        if event.tag is not None:
            hint = "write plain values; text that looks like a number goes in quotes"
            self.stop(event, f"tag {event.tag} is not allowed", hint)
        if depth > MAX_DEPTH:
            self.stop(event, f"nested more than {MAX_DEPTH} levels deep", "no field of a job file is that deep")
        if self.num_nodes > MAX_NODES:
            self.stop(event, f"more than {MAX_NODES:,} values", "name data files, do not paste them in")

    def mapping(self, path: FieldPath, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := self.parser.get_event(), yaml.MappingEndEvent):
            self.check(event, depth)
            if not isinstance(event, yaml.ScalarEvent):
                self.stop(event, "a key must be a word", "write `key: value`; text that starts with [ or { goes in quotes")
            key = event.value
            if key == "<<" and event.implicit[0]:
                self.stop(event, "merge key << is not allowed", "write the fields out")
            self.entry(values, event, (*path, key), depth)
        return values

    def entry(self, values: dict[str, object], event: Any, path: FieldPath, depth: int) -> None:
        key = path[-1]
        assert isinstance(key, str)
        first = self.source.places.get(path)
        if first is None:
            self.source.places[path] = _mark(event)
            values[key] = self.node(self.parser.get_event(), path, depth=depth + 1)
            return
        what = f"key {shown(key)} stands here and in line {first[0]}"
        self.source.findings.append(Finding(code="E103", path=path, mark=_mark(event), what=what, hint="keep one of the two"))
        _Reader(self.parser, self.file_name, YamlSource()).node(self.parser.get_event(), path, depth=depth + 1)

    def sequence(self, path: FieldPath, depth: int) -> list[object]:
        values: list[object] = []
        while not isinstance(event := self.parser.get_event(), yaml.SequenceEndEvent):
            place = (*path, len(values))
            self.source.places[place] = _mark(event)
            values.append(self.node(event, place, depth=depth + 1))
        return values

    def scalar(self, event: Any, path: FieldPath) -> object:
        if not event.implicit[0]:  # quoted or a block: always text
            return event.value
        value = core_scalar(event.value)
        if isinstance(value, float) and not math.isfinite(value):
            what = f"{event.value[:40]} is not a finite number"
            self.source.findings.append(Finding(code="E106", path=path, what=what, hint="write a number that a float can hold"))
            return None
        return value

    def stop(self, event: Any, what: str, hint: str) -> NoReturn:
        line, column = _mark(event)
        _refuse(f"{self.file_name}:{line}:{column}", what, hint)


def core_scalar(text: str) -> str | int | float | bool | None:
    """What a plain scalar stands for in YAML 1.2; digits after a leading 0 are no number of anyone's, so they stay text."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.match(text):
        return int(text) if len(text) <= MAX_DIGITS else math.inf
    if _BASED.match(text) and len(text) <= MAX_DIGITS:
        return int(text, 0)
    if _FLOAT.match(text):
        return float(text)
    if _NOT_FINITE.match(text):
        return math.nan if "n" in text.lower()[-3:-2] else math.inf
    return text


def _mark(event: Any) -> Mark:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _place_at(text: str, offset: int) -> str:
    line_start = text.rfind("\n", 0, offset) + 1
    return f"{text.count(chr(10), 0, offset) + 1}:{min(offset, len(text)) - line_start + 1}"


def _refuse(where: str, what: str, hint: str) -> NoReturn:
    raise LauncherError(Problem(code="E102", where=where, what=what, hint=hint)) from None


def _refuse_syntax(error: yaml.MarkedYAMLError, text: str, file_name: str) -> NoReturn:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = text.splitlines()
    written = lines[line - 1] if line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())]:
        _refuse(f"{file_name}:{line}:{written.index(chr(9)) + 1}", "a tab is used to indent", "indent with spaces")
    what = f"not YAML: {', '.join(part for part in (error.context, error.problem) if part)}"
    hint = "write `key: value` with fields of a block below each other; text that holds `: ` or ` #` goes in quotes"
    _refuse(f"{file_name}:{line}:{column}", what, hint)
