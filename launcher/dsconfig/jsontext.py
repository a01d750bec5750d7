"""JSON text -> plain values with the line and column of every key. DERIVE, pure.

The standard parser tells no places and keeps the last of two equal keys; both matter to a reader who has to mend the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import NoReturn

from launcher.errors import LauncherError, Problem

KeyPath = tuple[str | int, ...]
MAX_DEPTH = 50

_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"-?(?:Infinity|[0-9][0-9.eE+-]*)|NaN|true|false|null")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')


@dataclass(slots=True)
class JsonText:
    """Values of one text. `places` holds the offset of each key (or list element); complete once parsed."""

    text: str
    file_name: str
    value: object = None
    places: dict[KeyPath, int] = field(default_factory=dict)
    duplicates: list[tuple[KeyPath, int]] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """`ds.json:4:3` of the key, or of the nearest object around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.place_at(self.places[path[:end]])
        return f"{self.file_name}:1:1"

    def place_at(self, offset: int) -> str:
        line = self.text.count("\n", 0, offset) + 1
        return f"{self.file_name}:{line}:{offset - self.text.rfind(chr(10), 0, offset)}"


def parse_json(text: str, file_name: str) -> JsonText:
    """The values of `text`. LauncherError E301 with line and column where it is no JSON object."""
    parsed = JsonText(text=text.removeprefix("\ufeff"), file_name=file_name)
    parser = _Parser(parsed)
    parsed.value, end = parser.value(parser.skip(0), (), depth=0)
    end = parser.skip(end)
    if end < len(parsed.text):
        parser.fail(end, "text after the end of the object")
    if not isinstance(parsed.value, dict):
        parser.fail(0, "a DeepSpeed config is one JSON object")
    return parsed


class _Parser:
    """Recursive descent. Each method takes an offset and returns a value with the offset behind it."""

    def __init__(self, parsed: JsonText) -> None:
        self.parsed = parsed
        self.text = parsed.text

    def fail(self, offset: int, what: str) -> NoReturn:
        extended = self.text[offset : offset + 1] in ("#", "}", "]", "/")
        hint = "comments and trailing commas are read by DeepSpeed, not by transformers and accelerate" if extended else ""
        hint = f"{hint}: write plain JSON" if hint else "write plain JSON"
        raise LauncherError(Problem(code="E301", where=self.parsed.place_at(offset), what=what, hint=hint))

    def skip(self, offset: int) -> int:
        match = _SPACE.match(self.text, offset)
        return match.end() if match else offset

    def value(self, offset: int, path: KeyPath, *, depth: int) -> tuple[object, int]:
        if depth > MAX_DEPTH:
            self.fail(offset, f"nested more than {MAX_DEPTH} levels deep")
        start = self.text[offset : offset + 1]
        if start == "{":
            return self.mapping(offset, path, depth=depth)
        if start == "[":
            return self.sequence(offset, path, depth=depth)
        if start == '"':
            return self.string(offset)
        return self.scalar(offset)

    def mapping(self, offset: int, path: KeyPath, *, depth: int) -> tuple[dict[str, object], int]:
        values: dict[str, object] = {}
        offset = self.skip(offset + 1)
        while self.text[offset : offset + 1] != "}":
            if values:
                offset = self.skip(self.expect(offset, ","))
            offset = self.entry(values, offset, path, depth=depth)
        return values, offset + 1

    def entry(self, values: dict[str, object], offset: int, path: KeyPath, *, depth: int) -> int:
        if self.text[offset : offset + 1] != '"':
            self.fail(offset, "a key in double quotes is expected here")
        key, end = self.string(offset)
        here = (*path, key)
        if key in values:
            self.parsed.duplicates.append((here, offset))
        self.parsed.places.setdefault(here, offset)
        values[key], end = self.value(self.skip(self.expect(self.skip(end), ":")), here, depth=depth + 1)
        return self.skip(end)

    def sequence(self, offset: int, path: KeyPath, *, depth: int) -> tuple[list[object], int]:
        values: list[object] = []
        offset = self.skip(offset + 1)
        while self.text[offset : offset + 1] != "]":
            if values:
                offset = self.skip(self.expect(offset, ","))
            here = (*path, len(values))
            self.parsed.places[here] = offset
            value, end = self.value(offset, here, depth=depth + 1)
            values.append(value)
            offset = self.skip(end)
        return values, offset + 1

    def expect(self, offset: int, sign: str) -> int:
        if self.text[offset : offset + 1] != sign:
            self.fail(offset, f"`{sign}` is expected here")
        return offset + 1

    def string(self, offset: int) -> tuple[str, int]:
        match = _STRING.match(self.text, offset)
        if match is None:
            self.fail(offset, "this text has no end on its line")
        return str(self.decoded(match)), match.end()

    def scalar(self, offset: int) -> tuple[object, int]:
        match = _SCALAR.match(self.text, offset)
        if match is None:
            self.fail(offset, "a value is expected here" if offset < len(self.text) else "the file ends in the middle")
        return self.decoded(match), match.end()

    def decoded(self, match: re.Match[str]) -> object:
        try:
            return json.loads(match.group())
        except ValueError:
            self.fail(match.start(), f"{match.group()[:40]} is no JSON value")
