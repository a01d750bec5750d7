"""Processes inside Linux namespaces: found from outside, entered from outside. Linux, root.

A process that is started here is a child of ours with a pid of ours, so that signals, exit codes and pipes are those of the
program itself and not of a helper around it (`nsenter --pid` forks, and its fork hears no signal).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_CLONE_NEWPID = 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)  # os.setns comes with Python 3.12


def only_child(pid: int) -> int:
    """The pid of the one child of a process, as we see it: what `unshare --fork` started. ProcessLookupError where none is."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = file.read().split()
    if not children:
        raise ProcessLookupError(f"process {pid} has no child")
    return int(children[0])


def start_inside(
    pid: int, argv: Sequence[str], *, cwd: str, env: Mapping[str, str], net: str = "", **popen: Any
) -> subprocess.Popen[str]:
    """Start a program in all namespaces of process `pid`, in a session of its own; `net` names another network namespace.

    A program that is not there ends with code 127, as in a shell.
    """
    inside = ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", f"--net={net}" if net else "--net", "--"]
    with _children_born_in(pid):
        return subprocess.Popen(
            [*inside, "env", "-C", cwd, "--", *argv], env=dict(env), start_new_session=True, text=True, **popen
        )


@contextmanager
def _children_born_in(pid: int) -> Iterator[None]:
    """What this thread forks is born in the pid namespace of process `pid`; the thread itself and other threads stay."""
    ours = os.open("/proc/thread-self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_pid_namespace(theirs)
        finally:
            os.close(theirs)
        try:
            yield
        finally:
            _set_pid_namespace(ours)
    finally:
        os.close(ours)


def _set_pid_namespace(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWPID) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
