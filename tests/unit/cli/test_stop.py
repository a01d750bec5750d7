"""`launcher stop` against a real process in the controller's place."""

from __future__ import annotations

import signal
import subprocess
import time

from launcher.backends.shell import read_stat
from launcher.cli import stop
from launcher.supervise.lock import Owner


def test_a_controller_that_ctrl_z_has_stopped_ends_at_once() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        child.send_signal(signal.SIGSTOP)
        stat = read_stat(child.pid)
        assert stat is not None
        started_s = time.monotonic()
        stop._ask(Owner(pid=child.pid, started_ticks=stat.started_ticks, host="", boot=""), stop.TO_SAVE)
        assert child.wait(timeout=5) == -signal.SIGTERM
        assert time.monotonic() - started_s < 5
    finally:
        child.kill()
        child.wait()
