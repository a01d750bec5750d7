"""Text of a DeepSpeed hostfile -> its hosts. ASK. Stricter than DeepSpeed, which takes `slots=4garbage` and `-oProxyCommand=…`.

# comment
worker-1 slots=8
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from launcher.errors import LauncherError, Problem
from launcher.spec.wording import shown

MAX_SLOTS = 1024
MAX_HOSTS = 100_000
HOST = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?"
_SLOTS = r"slots=([0-9]{1,9})"


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One host and how many ranks it takes."""

    host: str
    slots: int
    line: int


def read_hostfile(path: Path) -> tuple[HostEntry, ...]:
    """The hosts in `path`. LauncherError E101 or E116 with every bad line."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        what = f"the hostfile cannot be read: {(error.strerror or 'unknown reason').lower()}"
        problem = Problem(code="E101", where=str(path), what=what, hint="check the path and its permissions")
    except UnicodeDecodeError as error:
        what = f"the hostfile is not UTF-8 text: byte 0x{error.object[error.start]:02x}"
        problem = Problem(code="E116", where=str(path), what=what, hint="save it as plain text")
    else:
        return parse_hostfile(text, file_name=str(path))
    raise LauncherError(problem) from None


def parse_hostfile(text: str, *, file_name: str) -> tuple[HostEntry, ...]:
    """Every host of the text, in order. LauncherError E116 with every bad line."""
    entries: dict[str, HostEntry] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        words = line.partition("#")[0].split(" ")
        if not any(words):
            continue
        entry = _entry([word for word in words if word], number)
        where = f"{file_name}:{number}:1"
        if isinstance(entry, tuple):
            what, hint = entry
            problems.append(Problem(code="E116", where=where, what=what, hint=hint))
        elif _same(entry.host) in entries:
            what = f"host {entry.host} stands here and in line {entries[_same(entry.host)].line}"
            problems.append(Problem(code="E116", where=where, what=what, hint="name each host once, with all of its slots"))
        else:
            entries[_same(entry.host)] = entry
    if not entries and not problems:
        hint = "write one `host slots=N` a line"
        problems.append(Problem(code="E116", where=file_name, what="the hostfile names no host", hint=hint))
    if problems:
        raise LauncherError(problems)
    return tuple(entries.values())


def _same(host: str) -> str:
    return host.lower()


def _entry(words: list[str], line: int) -> HostEntry | tuple[str, str]:
    """The host of one line, or what is wrong with it and what would work."""
    host = words[0]
    if not (re.fullmatch(HOST, host) or _is_address(host)):
        return f"{shown(host)} is not a host name or address", "use letters, digits, dots and dashes, or an IP address"
    slots = re.fullmatch(_SLOTS, words[1]) if len(words) == 2 else None
    if slots is None:
        return f"{shown(' '.join(words))} is not `host slots=N`", f"write `{host} slots=8`"
    if not 1 <= int(slots[1]) <= MAX_SLOTS:
        return f"slots={slots[1]} is not from 1 to {MAX_SLOTS}", "write how many ranks the host takes, usually its GPUs"
    return HostEntry(host, int(slots[1]), line)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # an IPv6 scope is free text
