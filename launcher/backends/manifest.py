"""Dicts -> YAML that every reader takes as it was meant. Pure.

Readers of YAML do not agree which plain words are texts (`on`, `y`, `012`, `1e3`, `1_000`): what is not surely one is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import yaml

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./@-]+)*")
_NO_TEXT = re.compile(r"(?i:y|n|yes|no|on|off|true|false|null|nan|inf)")
# A line of a block stays as it is: no blank at its end, nothing that a reader of YAML takes for a line end or refuses.
_SEEN = r"[!-~\u00a1-\u2027\u202a-\ud7ff]"
_LINE = re.compile(rf"(?: *{_SEEN}(?:(?:{_SEEN}| )*{_SEEN})?)?")


class _Dumper(yaml.SafeDumper):
    """Without anchors and aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    plain = _PLAIN.fullmatch(value) and not _NO_TEXT.fullmatch(value)
    block = "\n" in value and value[0] not in " \n" and all(map(_LINE.fullmatch, value.split("\n")))
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "|" if block else '"')


_Dumper.add_representer(str, _text)


def yaml_text(documents: Iterable[Mapping[str, object]], *, head: str = "") -> str:
    """All documents of one file, keys in the order given, below a comment."""
    text = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20, default_flow_style=False)
    return "".join(f"# {line}\n" for line in head.splitlines()) + str(text)
