"""The only door to processes on the control side: start one, ask how it is, find those of a run, signal them.

DO, thin: no decision is made here. Processes of a run are found by their token (LAUNCHER_RUN) in /proc, never by name, and
are signalled only after their start time was compared, so that a reused pid of somebody else is never hit. Linux.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from launcher.backends.request import TOKEN, LaunchRequest
from launcher.errors import EXIT_RUN
from launcher.rundir.leave import LEAVE

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One live process, named so that a later process with the same pid is another one."""

    pid: int
    started_ticks: int
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/<pid>/stat says. `wait_status` is known only in the moment between death and being reaped."""

    state: str
    started_ticks: int
    wait_status: int

    @property
    def dead(self) -> bool:
        return self.state in "ZX"


def read_stat(pid: int) -> Stat | None:
    """None where there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command name before it may hold blanks and brackets
    return Stat(state=fields[0], started_ticks=int(fields[19]), wait_status=int(fields[49]))


def is_alive(process: Process) -> bool:
    stat = read_stat(process.pid)
    return stat is not None and not stat.dead and stat.started_ticks == process.started_ticks


class Child:
    """A started request: the leader of its own session, so that a terminal's Ctrl-C reaches only the controller."""

    def __init__(self, popen: subprocess.Popen[bytes]):
        self._popen = popen
        self.pid = popen.pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._popen.poll()


def start(request: LaunchRequest, *, cwd: Path, log: Path, base_env: Mapping[str, str]) -> Child:
    """Start in a new session, stdin closed, both outputs appended to `log`. OSError as exec raises it.

    LEAVE is blocked in it and in all that it starts: a mask survives fork and exec, a handler does not.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {LEAVE})
    try:
        return _start(request.argv, cwd=cwd, log=log, env={**base_env, **dict(request.env)})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_detached(argv: Sequence[str], *, cwd: Path, log: Path) -> Child:
    """Start a program that outlives this one."""
    return _start(argv, cwd=cwd, log=log, env=dict(os.environ))


def become(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """The program instead of this one, as the same process. OSError as exec raises it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(argv[0], list(argv), dict(env))


def _start(argv: Sequence[str], *, cwd: Path, log: Path, env: dict[str, str]) -> Child:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return Child(
            subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )


def run_in_foreground(argv: Sequence[str]) -> int:
    """Run a tool on this terminal and wait: it has our stdin, outputs and Ctrl-C. Exit code, 5 where a signal ended it."""
    quiet = {"PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    code = subprocess.run(list(argv), env={**os.environ, **quiet}, check=False).returncode
    return code if code >= 0 else EXIT_RUN


@dataclass(frozen=True, slots=True)
class Done:
    """A tool that has ended: exit code, and what it said."""

    code: int
    output: str
    errors: str


def run_tool(argv: Sequence[str], *, wait_s: float, env: Mapping[str, str]) -> Done:
    """Run a tool, without a terminal, to its end. OSError as exec raises it, TimeoutError where it had to be killed."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=wait_s,
            check=False,
            start_new_session=True,
            env=dict(env),
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(argv[0]) from None
    return Done(done.returncode, *(text.decode("utf-8", errors="replace") for text in (done.stdout, done.stderr)))


def boot_id() -> str:
    """Names this boot of the kernel: start times count from it. Empty where the kernel does not tell."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def find_processes(token: str, *, but: Process | None = None) -> list[Process]:
    """Live processes of this user that carry the token, but not this one, nor the one that is spared."""
    wanted, found = f"{TOKEN}={token}".encode(), []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            environ = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile, or it is not ours to read
        stat = read_stat(int(entry.name))
        if wanted not in environ or stat is None or stat.dead:
            continue
        process = Process(int(entry.name), stat.started_ticks, _rank(environ))
        if but is None or (process.pid, process.started_ticks) != (but.pid, but.started_ticks):
            found.append(process)
    return found


def _rank(environ: Sequence[bytes]) -> int | None:
    """The rank that launch.py gave; None for the launcher's own processes."""
    values = dict(item.split(b"=", 1) for item in environ if b"=" in item)
    rank, local = values.get(b"RANK", b""), values.get(b"LOCAL_RANK", b"")
    return int(rank) if rank.isdigit() and local.isdigit() else None


def send(process: Process, number: signal.Signals) -> None:
    """Signal exactly this process; nothing where it has ended."""
    if not is_alive(process):
        return
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return


def ask_to_leave(token: str, *, leader: int | None = None) -> None:
    """LEAVE to the run's ranks on this machine, and to the process that leads those elsewhere, if there is one."""
    for process in find_processes(token):
        if process.rank is not None or process.pid == leader:
            send(process, LEAVE)
            send(process, signal.SIGCONT)  # a stopped process looks only when it runs again


def end_processes(
    token: str,
    *,
    grace_s: float,
    hurry: Callable[[], bool] = lambda: False,
    kill_wait_s: float = 5.0,
    but: Process | None = None,
) -> tuple[list[Process], list[Process]]:
    """TERM all processes of the token, KILL what is left after `grace_s` or when `hurry()`. (Found at first, still alive.)"""
    found = find_processes(token, but=but)
    for process in found:
        send(process, signal.SIGTERM)
        send(process, signal.SIGCONT)  # a stopped process takes its TERM only when it runs again
    left = _wait_until_gone(token, grace_s, hurry, but)
    for process in left:
        send(process, signal.SIGKILL)
    return found, _wait_until_gone(token, kill_wait_s, lambda: False, but) if left else []


def _wait_until_gone(token: str, wait_s: float, hurry: Callable[[], bool], but: Process | None) -> list[Process]:
    deadline_s = time.monotonic() + wait_s
    while (left := find_processes(token, but=but)) and time.monotonic() < deadline_s and not hurry():
        time.sleep(0.05)
    return left
