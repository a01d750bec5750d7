"""`launcher stop RUN`: end a run and see that nothing of it is alive. It can be resumed."""

from __future__ import annotations

import signal
import time
from argparse import ArgumentParser, Namespace

from launcher.backends.shell import end_processes, find_processes, is_alive, send
from launcher.cli.common import add_json, add_run, runs_root, say, show, show_json
from launcher.errors import EXIT_DONE, LauncherError, Problem
from launcher.rundir.events import append_event
from launcher.rundir.find import find_run
from launcher.rundir.folder import RunDir
from launcher.supervise.asking import is_elsewhere, stop_elsewhere
from launcher.supervise.lock import Owner, find_owner, this_process

ASK_AGAIN_S = 15.0  # a second TERM makes the controller kill at once
GIVE_UP_S = 30.0
GRACE_S = 5.0


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    folder = find_run(args.run, runs_root(args))
    if is_elsewhere(folder):
        say("asking the run to stop, on the host that controls it")
        stop_elsewhere(folder)
        return _tell(args, folder, was_running=True, num_ended=0)
    owner = find_owner(folder)
    if owner is not None and owner.host != this_process().host:
        owner = None  # its job is over: nobody there controls it
    token, was_running = str(folder.path), owner is not None or bool(find_processes(str(folder.path)))
    if was_running:
        append_event(folder.events, "stop.asked", pid=owner.pid if owner else None)
    if owner is not None:
        _ask(owner)
    found, alive = end_processes(token, grace_s=GRACE_S)
    if alive:
        pids = ", ".join(str(process.pid) for process in alive)
        hint = "a driver or a file system may hold them in the kernel; look at them with ps"
        raise LauncherError(Problem(code="E511", where=f"process {pids}", what="does not end, not even by SIGKILL", hint=hint))
    return _tell(args, folder, was_running=was_running, num_ended=len(found))


def _tell(args: Namespace, folder: RunDir, *, was_running: bool, num_ended: int) -> int:
    """`num_ended`: processes of this host."""
    if args.json:
        show_json({"schema": 1, "run": str(folder.path), "was_running": was_running, "ended_processes": num_ended})
    else:
        show(f"{folder.path}: {'stopped' if was_running else 'was not running'}")
    return EXIT_DONE


def _ask(owner: Owner) -> None:
    """TERM to the controller, which ends its ranks and writes its last events; a second one where it takes long."""
    asked_s = time.monotonic()
    say(f"asking process {owner.pid} to stop")
    send(owner.process, signal.SIGTERM)
    send(owner.process, signal.SIGCONT)  # one that Ctrl-Z has stopped takes its TERM only when it runs again
    again = False
    while is_alive(owner.process) and (waited_s := time.monotonic() - asked_s) < GIVE_UP_S:
        if not again and waited_s > ASK_AGAIN_S:
            send(owner.process, signal.SIGTERM)
            again = True
        time.sleep(0.05)
    if is_alive(owner.process):
        send(owner.process, signal.SIGKILL)
