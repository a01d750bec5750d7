"""A controller in a session of its own: what `--detach` of `run` and `resume` leaves behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from launcher.backends.shell import Child, start_detached
from launcher.cli.common import say, show, show_json
from launcher.errors import EXIT_DONE, LauncherError, Problem
from launcher.rundir.folder import RunDir
from launcher.supervise.lock import find_owner

HELD_WAIT_S = 20.0


def detach(run: RunDir, words: Sequence[str], *, as_json: bool) -> int:
    """Hand a written run to `launcher resume RUN WORDS…`, and return when that holds it. LauncherError E514."""
    argv = [sys.executable, "-P", "-m", "launcher", "resume", str(run.path), *words]
    child = start_detached(argv, cwd=run.path, log=run.controller_log)
    _wait_until_held(run, child)
    show(str(run.path))
    if as_json:
        show_json({"schema": 1, "run": str(run.path), "pid": child.pid})
    else:
        say(f"process {child.pid} goes on with it; see launcher status, logs, stop")
    return EXIT_DONE


def _wait_until_held(run: RunDir, child: Child) -> None:
    deadline_s = time.monotonic() + HELD_WAIT_S
    while ((owner := find_owner(run)) is None or owner.pid != child.pid) and time.monotonic() < deadline_s:
        code = child.poll()
        if code is not None and code != EXIT_DONE:
            what = f"the detached controller ended with exit code {code}"
            raise LauncherError(Problem(code="E514", where=str(run.path), what=what, hint=f"read {run.controller_log}"))
        if code == EXIT_DONE:
            return
        time.sleep(0.05)
