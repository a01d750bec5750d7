"""events.jsonl: what happened, one JSON object a line, only ever appended. A torn last line is skipped by readers."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

LOCK_S = 1.0  # a writer holds it for one write; one that holds it for longer hangs, and others do not hang with it


def append_event(path: Path, kind: str, **fields: object) -> None:
    """Append {"t": seconds since the epoch, "kind": …, …} with one write, so that writers of several ranks do not mix.

    Under a lock: over NFS two hosts that append at the same time write over each other.
    """
    line = json.dumps({"t": round(time.time(), 3), "kind": kind, **fields}, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _lock(handle)
        os.write(handle, line.encode())
    finally:
        os.close(handle)  # and the lock is free


def _lock(handle: int) -> None:
    """Not where the file system has no locks: there the write alone has to do."""
    deadline_s = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                return None
            time.sleep(0.005)
        except OSError:
            return None


def read_events(path: Path) -> Iterator[dict[str, object]]:
    """Every whole line, oldest first; nothing where the file is absent."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event
