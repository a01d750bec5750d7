"""Finding: a problem of one key of a DeepSpeed config before it gets its place. And how values of a parsed config are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from launcher.dsconfig.jsontext import KeyPath
from launcher.dsconfig.keys import Schema

Config = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    code: str
    path: KeyPath
    what: str
    hint: str
    offset: int | None = None  # None: the place of the key


Rule = Callable[[Config, Schema], Iterator[Finding]]


def text_of(path: KeyPath) -> str:
    return ".".join(map(str, path))


def section(config: Config, *path: str) -> Config:
    """The object at `path`, or an empty one where there is none."""
    value: object = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float | None:
    """The value where it is a number; true and false are none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
