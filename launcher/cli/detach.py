"""A controller in a session of its own: what `--detach` of `run` and `resume` leaves behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from launcher.backends.shell import start_detached
from launcher.cli.common import say, show, show_json
from launcher.errors import EXIT_DONE
from launcher.rundir.events import read_events
from launcher.rundir.folder import RunDir
from launcher.supervise.tail import tail_of

LOOK_S = 0.1


def detach(run: RunDir, words: Sequence[str], *, as_json: bool) -> int:
    """Hand a written run to `launcher resume RUN WORDS…`, and return once that has begun; what it says until then is told.

    Where it ends before, with its exit code.
    """
    log, before = tail_of(run.controller_log), _beginnings(run)
    argv = [sys.executable, "-P", "-m", "launcher", "resume", str(run.path), *words]
    child = start_detached(argv, cwd=run.path, log=run.controller_log)
    while _beginnings(run) == before:
        code = child.poll()
        log.tell()
        if code is not None and _beginnings(run) == before:
            return code
        time.sleep(LOOK_S)
    show(str(run.path))
    if as_json:
        show_json({"schema": 1, "run": str(run.path), "pid": child.pid})
    else:
        say(f"process {child.pid} goes on with it; see launcher status, logs, stop")
    return EXIT_DONE


def _beginnings(run: RunDir) -> int:
    return sum(event["kind"] == "run.started" for event in read_events(run.events))
