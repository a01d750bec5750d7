"""The room: pid 1 of a namespace around all hosts of a cluster, with the switches and, in memory, the files of the cluster.

It ends when its stdin does, so it outlives its tests by no more than a moment, however they end; and all that is in it ends
with it, because the kernel kills what is in a pid namespace without pid 1, and drops mounts and networks that nobody uses.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.namespaces import only_child, start_inside

HOME = "/run/home"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"HOME": HOME, "USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8", "TERM": "dumb", "PATH": PATH}
FOLDER = "/run/cluster"  # the cluster's own files, as the room and every host see them
WAIT_S = 20.0

_SCRIPT = "mount -t tmpfs -o mode=755 tmpfs /run && mkdir -m 755 /run/cluster && echo open && exec cat >/dev/null"


class HostError(AssertionError):
    """A command that had to succeed did not, or a host does not come up."""


class Room:
    """Open from the start until close()."""

    def __init__(self) -> None:
        namespaces = ["--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--net"]
        self._unshare = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", _SCRIPT],
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which then close the room
        )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != "open\n":
            raise HostError(f"no room for the cluster: {self._unshare.communicate()[1]}")
        self.pid = only_child(self._unshare.pid)
        self.folder = Path(f"/proc/{self.pid}/root{FOLDER}")  # FOLDER, as this machine sees it

    def network_of(self, name: str) -> str:
        """A host's network namespace, which is there before the host and stays when it crashes."""
        return f"/proc/{self.pid}/root/run/netns/{name}"

    def run(self, argv: Sequence[str], *, stdin: str = "", network_of: str = "") -> None:
        """A tool that must succeed, on the switches' network or on that of a host."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        net = self.network_of(network_of) if network_of else ""
        process = start_inside(self.pid, argv, cwd="/", env=ENVIRONMENT, net=net, **pipes)
        must(finish(process, argv, stdin=stdin, timeout_s=WAIT_S), where=network_of or "the room")

    def kill(self) -> None:
        if self._unshare.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Until nothing of it is left. Whoever has started something in it must have waited for that."""
        self._unshare.communicate(timeout=WAIT_S)


def finish(
    process: subprocess.Popen[str], argv: Sequence[str], *, stdin: str | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """The end of a process that has pipes; SIGKILL to its session where that takes too long."""
    try:
        out, err = process.communicate(stdin, timeout=timeout_s)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


def must(done: subprocess.CompletedProcess[str], *, where: str) -> str:
    """What it printed, without the last line end. HostError where it failed."""
    if done.returncode != 0:
        raise HostError(f"{done.args} in {where} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return str(done.stdout).removesuffix("\n")
