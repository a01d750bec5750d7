"""The door to processes: what is found by token, what is signalled, and what must never be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from launcher.backends.request import TOKEN, LaunchRequest
from launcher.backends.shell import (
    Process,
    ask_to_leave,
    end_processes,
    find_processes,
    is_alive,
    read_stat,
    send,
    start,
    start_detached,
)
from launcher.rundir.leave import LEAVE

SLEEP = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]


@pytest.fixture
def spawn() -> Iterator[object]:
    started: list[subprocess.Popen[str]] = []

    def make(token: str | None, code: list[str] = SLEEP) -> subprocess.Popen[str]:
        env = {**os.environ, **({TOKEN: token} if token else {})}
        process = subprocess.Popen(code, env=env, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield make
    for process in started:
        process.kill()
        process.communicate()


def test_only_processes_with_exactly_this_token_are_found(spawn):
    mine = spawn("/runs/job/a")
    for token in ("/runs/job/ab", "/runs/job", None):
        spawn(token)
    assert [process.pid for process in find_processes("/runs/job/a")] == [mine.pid]


def test_ending_a_run_leaves_processes_of_others_alone(spawn):
    mine, other = spawn("/runs/job/a"), spawn("/runs/job/b")
    found, alive = end_processes("/runs/job/a", grace_s=5)
    assert [process.pid for process in found] == [mine.pid]
    assert alive == []
    assert mine.wait(5) == -signal.SIGTERM
    assert other.poll() is None


def test_a_process_that_ignores_term_is_killed_after_the_grace(spawn):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    process = spawn("/runs/job/c", [sys.executable, "-S", "-c", code])
    end_processes("/runs/job/c", grace_s=0.2)
    assert process.wait(5) == -signal.SIGKILL


def test_grandchildren_that_left_their_group_are_found(spawn):
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True).pid, flush=True)"
    spawn("/runs/job/d", [sys.executable, "-S", "-c", code, "sleep", "60"]).wait(5)
    [left] = find_processes("/runs/job/d")
    end_processes("/runs/job/d", grace_s=2)
    assert not is_alive(left)


def test_a_reused_pid_is_not_signalled(spawn):
    process = spawn(None)
    send(Process(process.pid, started_ticks=1), signal.SIGKILL)
    time.sleep(0.1)
    assert process.poll() is None


def test_a_zombie_tells_how_it_died_and_does_not_count_as_alive(spawn):
    process = spawn("/runs/job/e")
    os.kill(process.pid, signal.SIGSEGV)
    deadline_s = time.monotonic() + 5
    while not (stat := read_stat(process.pid)).dead and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert os.WTERMSIG(stat.wait_status) == signal.SIGSEGV
    assert find_processes("/runs/job/e") == []


def test_a_command_name_with_brackets_and_blanks_is_read(tmp_path):
    program = tmp_path / "a) b (c"
    os.symlink("/bin/sleep", program)
    process = subprocess.Popen([program, "5"])
    try:
        stat = read_stat(process.pid)
        assert stat is not None
        assert stat.started_ticks > 0
    finally:
        process.kill()
        process.wait()


def test_a_started_request_has_its_own_session_and_its_outputs_in_the_log(tmp_path):
    code = (
        "import os, sys; print(os.getsid(0) == os.getpid(), os.environ['A']); print('err', file=sys.stderr); sys.stdin.read()"
    )
    request = LaunchRequest(stage="s", argv=(sys.executable, "-u", "-c", code), env=(("A", "b"),), world=1)
    child = start(request, cwd=tmp_path, log=tmp_path / "logs" / "x.log", base_env={"PATH": os.environ["PATH"]})
    while child.poll() is None:
        time.sleep(0.01)
    assert child.poll() == 0
    assert (tmp_path / "logs" / "x.log").read_text() == "True b\nerr\n"


# What a request starts, and what that starts in turn; each tells a file whether LEAVE is blocked, and waits.
BRANCH = """
import os, signal, subprocess, sys, time
blocked = signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, set())
with open(f"{sys.argv[1]}/{os.environ.get('RANK', 'launcher')}", "w") as file:
    file.write(str(blocked))
if "RANK" not in os.environ:
    env = {**os.environ, "RANK": "0", "LOCAL_RANK": "0"}
    subprocess.Popen([sys.executable, "-S", "-c", sys.argv[2], *sys.argv[1:]], env=env)
deadline_s = time.monotonic() + 30
while signal.SIGUSR1 not in signal.sigpending() and time.monotonic() < deadline_s:
    time.sleep(0.02)
os.rename(f"{sys.argv[1]}/{os.environ.get('RANK', 'launcher')}", f"{sys.argv[1]}/{os.environ.get('RANK', 'launcher')}-asked")
"""


def test_a_request_to_leave_waits_in_the_ranks_until_they_look_and_kills_nobody(tmp_path):
    """Sent from the first moment on, again and again: no process dies of it, whatever it is at."""
    token, before = str(tmp_path / "run"), signal.pthread_sigmask(signal.SIG_BLOCK, set())
    argv = (sys.executable, "-S", "-c", BRANCH, str(tmp_path), BRANCH)
    request = LaunchRequest(stage="s", argv=argv, env=((TOKEN, token),), world=1)
    ours = signal.signal(LEAVE, signal.SIG_IGN)  # as `launcher node` does; what is ignored stays so behind exec
    try:
        child = start(request, cwd=tmp_path, log=tmp_path / "log", base_env=os.environ)
    finally:
        signal.signal(LEAVE, ours)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    deadline_s = time.monotonic() + 20
    while not (tmp_path / "0-asked").exists() and time.monotonic() < deadline_s:
        ask_to_leave(token, leader=child.pid)
    while child.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert child.poll() == 0
    assert [(tmp_path / name).read_text() for name in ("launcher-asked", "0-asked")] == ["True", "True"]


def test_who_is_no_rank_is_not_asked_to_leave(spawn):
    mine = spawn("/runs/job/a")
    ask_to_leave("/runs/job/a")
    time.sleep(0.2)
    assert mine.poll() is None


def test_a_controller_that_is_detached_hears_the_signal(tmp_path):
    code = "import signal, sys; sys.exit(3 if signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, set()) else 0)"
    child = start_detached([sys.executable, "-S", "-c", code], cwd=tmp_path, log=tmp_path / "log")
    while (ended := child.poll()) is None:
        time.sleep(0.02)
    assert (ended, LEAVE) == (0, signal.SIGUSR1)
