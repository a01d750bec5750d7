"""Which machine this is, whatever name it is reached by. DO, reads /proc only."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
_SPACES = ("net", "pid", "uts")  # what makes hosts of parts of one kernel: containers


def machine_id(proc: Path = PROC) -> str:
    """The same over every way to this host until it boots, and that of no other one; empty where the kernel does not tell."""
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        spaces = [os.readlink(proc / "self/ns" / space) for space in _SPACES]
    except OSError:
        return ""
    return " ".join([boot, *spaces, os.uname().nodename])
