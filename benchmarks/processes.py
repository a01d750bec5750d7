"""What a command costs: wall and CPU seconds of it and all its children, and the largest sum of their memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """`pss_peak_bytes` counts shared pages once over all processes (PSS), sampled; 0 where sampling was off."""

    exit_code: int
    wall_s: float
    cpu_s: float
    pss_peak_bytes: int


def _pss_bytes(root: psutil.Process) -> int:
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def measure(argv: Sequence[str], *, env: dict[str, str] | None = None, log: Path | None = None, sample_s: float = 0.0) -> Cost:
    """Run `argv` to its end. With `sample_s` > 0 the memory of the whole process tree is read that often."""
    started = time.monotonic()
    with open(log or os.devnull, "wb") as output:
        child = subprocess.Popen(argv, env={**os.environ, **(env or {})}, stdout=output, stderr=subprocess.STDOUT)
        peak, done = [0], threading.Event()

        def watch() -> None:
            root = psutil.Process(child.pid)
            while not done.wait(sample_s):
                try:
                    peak[0] = max(peak[0], _pss_bytes(root))
                except psutil.NoSuchProcess:
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        if sample_s > 0:
            watcher.start()
        _, status, usage = os.wait4(child.pid, 0)
        done.set()
    return Cost(
        exit_code=os.waitstatus_to_exitcode(status),
        wall_s=time.monotonic() - started,
        cpu_s=usage.ru_utime + usage.ru_stime,
        pss_peak_bytes=peak[0],
    )
