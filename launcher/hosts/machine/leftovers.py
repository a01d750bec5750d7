"""Processes of this user on this host that belong to any run, by the token in their environment. DO, only looking."""

from __future__ import annotations

import os

from launcher.hosts.machine.facts import LeftRun

TOKEN = b"LAUNCHER_RUN="  # backends.request.TOKEN, without what an import of it costs


def find_runs_alive(proc: str = "/proc") -> tuple[LeftRun, ...]:
    """Runs with a live process here, and which those are."""
    found: dict[str, list[int]] = {}
    for name in os.listdir(proc):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if os.stat(f"{proc}/{name}").st_uid != os.getuid():
                continue
            with open(f"{proc}/{name}/environ", "rb") as file:
                environ = file.read().split(b"\0")
        except OSError:
            continue  # it ended meanwhile, or it is not ours to read
        token = next((entry[len(TOKEN) :] for entry in environ if entry.startswith(TOKEN)), b"")
        if token:
            found.setdefault(os.fsdecode(token), []).append(int(name))
    return tuple(LeftRun(token=token, pids=tuple(sorted(pids))) for token, pids in sorted(found.items()))
