"""A docker daemon of the tests' own, in namespaces of its own: `with Daemon(folder, network=True) as daemon:`.

Pid 1 of its pid namespace ends when its stdin does, and with it the daemon, every container, mount and network, however the
tests end. What outlives it: `folder`, which the tests' temporary folder owns, and nothing else of the machine is touched.
Without `network` it has the machine's network for builds (`--network host`) and no other; with it, a network for itself in
which containers find each other by name, and no way out.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.docker.needs import PATH

WAIT_S = 60.0
_SCRIPT = """
folder=$1; shift
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
dockerd --data-root "$folder/data" --exec-root /run/docker --pidfile /run/dockerd.pid -H "unix://$folder/docker.sock" "$@" \
  </dev/null >"$folder/log" 2>&1 &
exec cat >/dev/null
"""
_PLAIN = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")
_BRIDGED = ("--bip=10.79.0.1/24", "--default-address-pool=base=10.80.0.0/16,size=24")


class Daemon:
    """Up between enter and exit. Two of them may follow each other on one folder: images and volumes are kept in it."""

    def __init__(self, folder: Path, *, network: bool) -> None:
        self.folder, self._network = folder, network
        self._group = f"docker-tests-{os.getpid()}"  # of its containers, in every hierarchy of control groups
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Daemon:
        namespaces = ["--fork", "--kill-child", "--pid", "--mount", "--mount-proc", *(["--net"] if self._network else [])]
        options = [*(_BRIDGED if self._network else _PLAIN), f"--cgroup-parent=/{self._group}"]
        (self.folder / "docker.sock").unlink(missing_ok=True)
        self._process = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", _SCRIPT, "sh", str(self.folder), *options],
            env={"PATH": PATH, "HOME": str(self.folder)},
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests
        )
        until_s = time.monotonic() + WAIT_S
        while self.run("info", check=False).returncode != 0:
            if time.monotonic() > until_s:
                said = (self.folder / "log").read_text()
                self.close()
                raise AssertionError(f"dockerd does not come up: {said[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._process is None:
            return
        self._process.communicate(timeout=WAIT_S)
        self._process = None
        for group in Path("/sys/fs/cgroup").glob(f"**/{self._group}"):
            for folder in sorted((group, *(path for path in group.rglob("*") if path.is_dir())), reverse=True):
                folder.rmdir()

    @property
    def env(self) -> dict[str, str]:
        """For a client: this daemon, and no settings of the machine's user."""
        return {
            "PATH": PATH,
            "HOME": str(self.folder),
            "DOCKER_HOST": f"unix://{self.folder}/docker.sock",
            "DOCKER_BUILDKIT": "1",
        }

    def run(
        self, *words: str, check: bool = True, timeout_s: float = 60.0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """docker WORDS to its end. AssertionError with what it said where it had to succeed."""
        return self.sh('exec docker "$@"', *words, check=check, timeout_s=timeout_s, env=env)

    def sh(
        self,
        script: str,
        *words: str,
        check: bool = True,
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A script that may call docker."""
        argv = ["sh", "-euc", script, "sh", *words]
        whole = {**self.env, **(env or {})}
        done = subprocess.run(
            argv, env=whole, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0 or not check, f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done
