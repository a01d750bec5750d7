"""One controller per run: controller.json names the process that may write into the run folder and start its ranks.

DO. The owner is alive when a process with its pid and its start time exists on the same boot of the same host; anything else
on this host is stale and taken over. The look-and-take is guarded by flock, so that two takers do not both succeed. What
another host holds is never taken over: from here nobody can tell whether it is alive.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.backends.shell import Process, boot_id, is_alive, read_stat
from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir, read_json, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that controls a run."""

    pid: int
    started_ticks: int
    host: str
    boot: str

    @property
    def process(self) -> Process:
        return Process(self.pid, self.started_ticks)


def this_process() -> Owner:
    stat = read_stat(os.getpid())
    assert stat is not None
    return Owner(pid=os.getpid(), started_ticks=stat.started_ticks, host=socket.gethostname(), boot=boot_id())


def find_owner(run: RunDir) -> Owner | None:
    """Who controls the run now: a live process of this host, or one of another host that nobody can check from here."""
    try:
        owner = Owner(**read_json(_file(run)))  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError):
        return None
    if owner.host != socket.gethostname():
        return owner
    return owner if owner.boot == boot_id() and is_alive(owner.process) else None


@contextmanager
def controlling(run: RunDir, *, refusal: Callable[[RunDir, Owner], Problem] | None = None) -> Iterator[None]:
    """Hold the run while the block runs. LauncherError where another process holds it: E507, or what `refusal` says."""
    me = this_process()
    with guard(run):
        owner = find_owner(run)
        if owner is not None and owner != me:
            raise LauncherError((refusal or _in_use)(run, owner))
        write_json(_file(run), asdict(me))
    try:
        yield
    finally:
        with guard(run):
            if find_owner(run) == me:
                _file(run).unlink(missing_ok=True)


def refuse_held(run: RunDir) -> None:
    """LauncherError E507 where another process controls the run."""
    owner = find_owner(run)
    if owner is not None and owner != this_process():
        raise LauncherError(_in_use(run, owner))


def forget_other_hosts(run: RunDir) -> None:
    """Where a scheduler starts one controller and no second one before the first has ended, a name of another host is stale."""
    with guard(run):
        owner = find_owner(run)
        if owner is not None and owner.host != socket.gethostname():
            _file(run).unlink(missing_ok=True)


@contextmanager
def guard(run: RunDir) -> Iterator[None]:
    """Nobody else looks and takes while the block runs."""
    handle = os.open(run.path / ".controller.guard", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _file(run: RunDir) -> Path:
    return run.path / "controller.json"


def _in_use(run: RunDir, owner: Owner) -> Problem:
    here = owner.host == socket.gethostname()
    return Problem(
        code="E507",
        where=str(run.path),
        what=f"process {owner.pid} on {owner.host} controls this run",
        hint=f"wait for it, or end it: launcher stop {run.path.name}"
        if here
        else f"stop it on {owner.host}; if that host is gone for good, remove {_file(run)}",
    )
