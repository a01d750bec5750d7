"""One host: from power on to a listening sshd, and to the end of the last process in it. What it is made of: furniture.py."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.namespaces import only_child, start_inside
from tests.cluster.room import ENVIRONMENT, FOLDER, WAIT_S, HostError, Room

INIT = Path(__file__).with_name("host.sh")


@dataclass(slots=True)
class Host:
    """`binds` (source, place) and `clock` (environment) hold from the next boot on and the next login on."""

    name: str
    number: int
    room: Room
    unshare: subprocess.Popen[str] | None = None  # the parent of pid 1; it ends when the host does
    pid: int = 0  # of its pid 1, as this machine sees it
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    binds: list[tuple[str, str]] = field(default_factory=list)
    clock: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The host's part of the cluster's files; there while the room is open."""
        return self.room.folder / self.name

    @property
    def up(self) -> bool:
        return self.unshare is not None and self.unshare.poll() is None

    def power_on(self, shm_size: str) -> None:
        assert not self.up, f"{self.name} is up"
        (self.folder / "binds").write_text("".join(f"{source}\t{place}\n" for source, place in self.binds))
        namespaces = ["--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--uts", "--ipc"]
        argv = ["unshare", *namespaces, "sh", str(INIT), self.name, shm_size]
        with (self.folder / "console.log").open("w") as console:
            talk = {"stdin": subprocess.DEVNULL, "stdout": console, "stderr": console}
            net = self.room.network_of(self.name)
            self.unshare = start_inside(self.room.pid, argv, cwd="/", env=ENVIRONMENT, net=net, **talk)

    def wait_until_booted(self) -> None:
        assert self.unshare is not None
        try:
            self.wait_for_port(22)
        except HostError as error:
            raise HostError(f"{self.name} does not come up: {(self.folder / 'console.log').read_text()}") from error
        self.pid = only_child(self.unshare.pid)

    def wait_for_port(self, port: int) -> None:
        """Daemons go to the background before they listen, so their end says nothing. The kernel knows."""
        assert self.unshare is not None
        listeners = Path(f"/proc/{self.unshare.pid}/net/tcp")
        until = time.monotonic() + WAIT_S
        while not _listens(listeners, port):
            if not self.up or time.monotonic() > until:
                raise HostError(f"nothing listens on port {port} of {self.name}, which is {'up' if self.up else 'down'}")
            time.sleep(0.005)

    def start(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, **popen: Any) -> subprocess.Popen[str]:
        if not self.up:
            raise HostError(f"{self.name} is down")
        whole = {**ENVIRONMENT, **self.clock, **env}
        process = start_inside(self.pid, argv, cwd=cwd, env=whole, **{"stdin": subprocess.DEVNULL, **popen})
        self.started.append(process)
        return process

    def kill(self) -> None:
        if not self.up:
            raise HostError(f"{self.name} is down")
        os.kill(self.pid, signal.SIGKILL)
        self.wait_for_end()

    def wait_for_end(self) -> None:
        """A pid namespace is gone when all in it were waited for: those that we started, by us."""
        for process in (*self.started, *filter(None, [self.unshare])):
            process.wait(WAIT_S)
        self.started.clear()

    def sshd(self) -> list[str]:
        """The command line of its sshd, as in host.sh."""
        return ["/usr/sbin/sshd", "-f", f"{FOLDER}/{self.name}/sshd_config", "-E", f"{FOLDER}/{self.name}/sshd.log"]


def _listens(table: Path, port: int) -> bool:
    """Whether a /proc/…/net/tcp has a listener (state 0A) on the port."""
    try:
        rows = [row.split() for row in table.read_text().splitlines()[1:]]
    except OSError:
        return False
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)
