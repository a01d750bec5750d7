"""`launcher stop RUN`: have its ranks save and leave, and see that nothing of it is alive. It can be resumed."""

from __future__ import annotations

import signal
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from launcher.backends.shell import end_processes, find_processes, is_alive, send
from launcher.cli.common import add_json, add_run, runs_root, say, show, show_json
from launcher.errors import EXIT_DONE, LauncherError, Problem
from launcher.rundir.events import append_event
from launcher.rundir.find import find_run
from launcher.rundir.folder import RunDir
from launcher.rundir.leave import SAVE_S
from launcher.supervise.asking import stop_elsewhere
from launcher.supervise.holder import holder_of
from launcher.supervise.lock import Owner
from launcher.units import seconds_text

GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds from the first TERM."""

    again_s: tuple[float, ...]  # the second TERM makes the controller end ranks that have not saved, the third kill them
    give_up_s: float


TO_SAVE = Patience((SAVE_S + 60.0, SAVE_S + 75.0), SAVE_S + 90.0)  # the controller itself waits for SAVE_S
NOW = Patience((0.5, 15.0), 30.0)  # two signals at once may be taken for one


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_json(parser)
    parser.add_argument("--now", action="store_true", help="end the ranks without another checkpoint")


def run(args: Namespace) -> int:
    folder = find_run(args.run, runs_root(args))
    holder = holder_of(folder)
    if holder is not None and holder.elsewhere:
        say("asking the run to stop, on the host that controls it")
        stop_elsewhere(folder, now=args.now)
        return _tell(args, folder, was_running=True, num_ended=0)
    owner = holder.controller if holder else None
    token, was_running = str(folder.path), owner is not None or bool(find_processes(str(folder.path)))
    if was_running:
        append_event(folder.events, "stop.asked", pid=owner.pid if owner else None)
    if owner is not None:
        _ask(owner, NOW if args.now else TO_SAVE)
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


def _ask(owner: Owner, patience: Patience) -> None:
    """TERM to the controller, which has its ranks save or ends them, and writes its last events; others where it takes long."""
    asked_s, again_s = time.monotonic(), list(patience.again_s)
    saves = f"; ranks at their steps save first, within {seconds_text(SAVE_S)}" if patience is TO_SAVE else ""
    say(f"asking process {owner.pid} to stop{saves}")
    send(owner.process, signal.SIGTERM)
    send(owner.process, signal.SIGCONT)  # one that Ctrl-Z has stopped takes its TERM only when it runs again
    while is_alive(owner.process) and (waited_s := time.monotonic() - asked_s) < patience.give_up_s:
        if again_s and waited_s > again_s[0]:
            send(owner.process, signal.SIGTERM)
            again_s.pop(0)
        time.sleep(0.05)
    if is_alive(owner.process):
        send(owner.process, signal.SIGKILL)
