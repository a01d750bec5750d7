"""Hostfile -> slots of this machine, for backend local. DO, reads one file (spec/hostfile.py) and this host's name."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.errors import LauncherError, Problem
from launcher.spec.hostfile import HostEntry, read_hostfile


def local_slots(path: Path) -> int:
    """Slots of this machine. LauncherError E403 for every other host, which DeepSpeed would reach for with ssh."""
    entries = read_hostfile(path)
    names = local_names()
    problems = [_foreign(path, entry) for entry in entries if entry.host.lower() not in names]
    if not problems and len(entries) > 1:
        both = " and ".join(entry.host for entry in entries[:2])
        problems = [_problem(path, entries[1].line, f"{both} are both this machine", "keep one of the lines")]
    if problems:
        raise LauncherError(problems)
    return entries[0].slots


def local_names() -> frozenset[str]:
    name = os.uname().nodename.lower()
    return frozenset({"localhost", "127.0.0.1", "::1", name, name.split(".")[0]})


def _foreign(path: Path, entry: HostEntry) -> Problem:
    hint = "backend local starts ranks on this machine only: name localhost alone, or leave the hostfile out"
    return _problem(path, entry.line, f"host {entry.host} is not this machine ({os.uname().nodename})", hint)


def _problem(path: Path, line: int, what: str, hint: str) -> Problem:
    return Problem(code="E403", where=f"{path}:{line}:1", what=f"cluster.hostfile: {what}", hint=hint)
