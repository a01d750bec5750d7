"""DeepSpeed version -> the keys it knows. One table a version (keys_<version>.py), each compared with the package in tests."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.dsconfig import keys_0_19_8


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Keys of one object of the config. `silent`: DeepSpeed says nothing about others; else it stops."""

    keys: frozenset[str]
    silent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What one version of DeepSpeed understands. Paths are dotted; the top level is the empty path."""

    version: str
    sections: dict[str, Section]
    removed: dict[str, str]  # path -> what to do instead
    deprecated: dict[str, str]  # path -> the new name
    optimizers: tuple[str, ...]  # any case
    torch_optimizers: tuple[str, ...]  # this case
    schedulers: tuple[str, ...]
    torch_schedulers: tuple[str, ...]


def _schema_0_19_8() -> Schema:
    table = keys_0_19_8
    strict = {path: Section(keys=frozenset(words.split()), silent=False) for path, words in table.STRICT.items()}
    silent = {path: Section(keys=frozenset(words.split()), silent=True) for path, words in table.SILENT.items()}
    sections = strict | silent
    return Schema(
        version=table.VERSION,
        sections=sections | {"bfloat16": sections["bf16"]},
        removed=table.REMOVED,
        deprecated=table.DEPRECATED,
        optimizers=tuple(table.OPTIMIZERS.split()),
        torch_optimizers=tuple(table.TORCH_OPTIMIZERS.split()),
        schedulers=tuple(table.SCHEDULERS.split()),
        torch_schedulers=tuple(table.TORCH_SCHEDULERS.split()),
    )


SCHEMAS: dict[str, Schema] = {schema.version: schema for schema in (_schema_0_19_8(),)}
NEWEST = keys_0_19_8.VERSION
