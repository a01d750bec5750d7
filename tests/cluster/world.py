"""Hosts for tests on one machine: `with Cluster(hosts=2) as cluster:` makes node1 and node2, and leaves nothing behind.

A host is a set of Linux namespaces: its own processes (pid 1 is host.sh), name, network cards, sshd with a host key, /run,
/dev/shm, /var/log, ~/.ssh and /etc/hosts. Everything else is this machine's own file system, which all hosts share and may
write, as over NFS; `private` names folders of which every host has its own, empty at first.

    cluster.run("node1", ["ssh", "node2", "hostname"])       without ssh into node1; with ssh from there
    cluster.crash("node2"); cluster.boot("node2")            SIGKILL of everything in it; private folders are kept
    cluster.cable("node2", up=False)                         silence; peers only ever time out

Nothing has to be cleaned up, not even after a SIGKILL of the tests (room.py): no folder, no mount, no name in /run/netns, no
process. The machine's ~/.ssh, /etc and network are not touched: root's home in the hosts is /run/home, by their /etc/passwd.

What the machine has to have: needs.py. SLURM in the hosts: slurm.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cluster import network
from tests.cluster.furniture import furnish, write_sshd_config
from tests.cluster.host import Host
from tests.cluster.room import FOLDER, HOME, PATH, HostError, Room, finish, must

__all__ = ["FOLDER", "HOME", "LOGIN", "PATH", "Cluster", "HostError", "faketime_library"]

LOGIN = "login"


class Cluster:
    """node1 … nodeN (`nodes`) and, with `login=True`, the host `login` to start jobs from, which has no ranks. `names`: all."""

    def __init__(
        self,
        hosts: int = 2,
        *,
        login: bool = False,
        private: Sequence[str] = (),
        networks: int = 1,
        ssh: Sequence[str] = (),
        sshd: Sequence[str] = (),
        shm_size: str = "1g",
    ) -> None:
        """`private` folders have to exist on this machine (/srv and /mnt do everywhere); HOME is one that may be named.
        `ssh`, `sshd`: lines of ~/.ssh/config and sshd_config that win over those of furniture.py."""
        if not 1 <= hosts <= network.MAX_HOSTS:
            raise ValueError(f"hosts: {hosts} is not in 1 to {network.MAX_HOSTS}")
        for folder in private:
            if folder != HOME and not (Path(folder).is_absolute() and Path(folder).is_dir()):
                raise ValueError(f"private: {folder!r} is no folder of this machine; /srv and /mnt are everywhere")
        self.nodes = [f"node{number}" for number in range(1, hosts + 1)]
        self.names = [*([LOGIN] if login else []), *self.nodes]
        self._private, self._networks, self._shm_size = tuple(private), networks, shm_size
        self._ssh, self._sshd = tuple(ssh), tuple(sshd)
        self._hosts: dict[str, Host] = {}
        self._room: Room | None = None

    # --- up and down ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        self._room = Room()
        try:
            numbers = {name: 0 if name == LOGIN else int(name.removeprefix("node")) for name in self.names}
            self._hosts = {name: Host(name, number, self._room) for name, number in numbers.items()}
            self._room.run(["sh", "-s"], stdin=network.wiring(numbers, networks=self._networks))
            hosts = list(self._hosts.values())
            furnish(hosts, private=self._private, networks=self._networks, ssh=self._ssh, sshd=self._sshd)
            self.boot(*self.names)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """SIGKILL of everything, and nothing is left of it when this returns."""
        if self._room is None:
            return
        self._room.kill()
        for host in self._hosts.values():
            host.wait_for_end()
        self._room.wait()
        self._room = None

    def boot(self, *names: str) -> None:
        """Start hosts that are down. Returns when each one's sshd listens."""
        for name in names:
            self._hosts[name].power_on(self._shm_size)
        for name in names:
            self._hosts[name].wait_until_booted()

    def crash(self, name: str) -> None:
        """SIGKILL of everything in the host. Its kernel still refuses connections; for silence, cut the cable first."""
        self._hosts[name].kill()

    def is_up(self, name: str) -> bool:
        return self._hosts[name].up

    # --- what runs in a host ----------------------------------------------------------------------------------------

    def start(
        self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = HOME, **popen: Any
    ) -> subprocess.Popen[str]:
        """A program in a host, in a clean environment and `env`. Signals reach the program; its pid is this machine's."""
        return self._hosts[name].start(argv, env=env or {}, cwd=cwd, **popen)

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        cwd: str = HOME,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """The same to its end: exit code and both outputs. subprocess.TimeoutExpired after a SIGKILL of its session."""
        given = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        process = self.start(name, argv, env=env, cwd=cwd, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return finish(process, argv, stdin=stdin, timeout_s=timeout_s)

    def out(self, name: str, argv: Sequence[str], **how: Any) -> str:
        """What a program that must succeed prints, without the last line end. HostError where it fails."""
        return must(self.run(name, argv, **how), where=name)

    def wait_for_port(self, name: str, port: int) -> None:
        """Until something in the host listens there."""
        self._hosts[name].wait_for_port(port)

    # --- files ------------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The cluster's own files, FOLDER in the hosts, as this machine sees them."""
        assert self._room is not None
        return self._room.folder

    def path(self, name: str, path: str | Path) -> Path:
        """A path of a host that is up, for reading and writing from here. Absolute links on the way lead out of the host."""
        assert self.is_up(name), f"{name} is down"
        return Path(f"/proc/{self._hosts[name].pid}/root{path}")

    def disk(self, name: str, folder: str) -> Path:
        """A host's `private` folder from outside, also while the host is down."""
        assert folder in self._private, folder
        return self.folder / name / "disk" / folder.lstrip("/")

    def ssh_folder(self, name: str) -> Path:
        """~/.ssh of a host: config, id_ed25519, id_ed25519.pub, authorized_keys, known_hosts. Kept over a crash."""
        return self.folder / name / "ssh"

    def etc_hosts(self, name: str) -> Path:
        """/etc/hosts of one host, to be written in place."""
        return self.folder / name / "etc" / "hosts"

    def sshd_log(self, name: str) -> str:
        return (self.folder / name / "sshd.log").read_text()

    def overlay(self, name: str, path: str | Path, replacement: str | Path) -> None:
        """One host sees another file or folder in this place, now and after each boot. Both have to be there in the host."""
        host = self._hosts[name]
        if host.up:
            self.out(name, ["mount", "--bind", str(replacement), str(path)])
        host.binds.append((str(replacement), str(path)))

    def uncover(self, name: str, path: str | Path) -> None:
        """The last overlay in this place is gone."""
        host = self._hosts[name]
        last = max(number for number, (_, place) in enumerate(host.binds) if place == str(path))
        del host.binds[last]
        if host.up:
            self.out(name, ["umount", "--lazy", str(path)])

    def hostfile(self, slots: int = 1) -> str:
        """Text of a DeepSpeed hostfile of all nodes."""
        return "".join(f"{name} slots={slots}\n" for name in self.nodes)

    # --- network ----------------------------------------------------------------------------------------------------

    def address(self, name: str, network_number: int = 0) -> str:
        return network.address(self._hosts[name].number, network_number)

    def cable(self, name: str, *, up: bool, network_number: int = 0) -> None:
        """Pull a host's cable out, or plug it in. No packet passes and none is refused."""
        port = network.port(self._hosts[name].number, network_number)
        self._in_room(["ip", "link", "set", port, "up" if up else "down"])

    def deaf(self, name: str, peer: str) -> None:
        """`name` hears nothing of `peer` on any network any more; `peer` still hears `name`."""
        addresses = ", ".join(self.address(peer, number) for number in range(self._networks))
        self._in_room(["nft", "-f", "-"], network_of=name, stdin=network.drop(f"ip saddr {{ {addresses} }}"))

    def filter(self, name: str, tcp_port: int | str = 22) -> None:
        """A firewall in front of a host that drops what comes for this port, or for these: "20000-32000"."""
        self._in_room(["nft", "-f", "-"], network_of=name, stdin=network.drop(f"tcp dport {tcp_port}"))

    def slow(self, name: str, kbit: int) -> None:
        """A host sends at most so many kbit/s on eth0."""
        self._in_room(["tc", *network.slow_down(kbit)], network_of=name)

    def heal(self, name: str) -> None:
        """No deaf, filter and slow on this host any more; its cables are plugged in."""
        self._in_room(["nft", "-f", "-"], network_of=name, stdin=network.DROP_NOTHING)
        self._in_room(["tc", *network.FULL_SPEED], network_of=name)
        for number in range(self._networks):
            self.cable(name, up=True, network_number=number)

    def _in_room(self, argv: Sequence[str], *, network_of: str = "", stdin: str = "") -> None:
        assert self._room is not None
        self._room.run(argv, network_of=network_of, stdin=stdin)

    # --- sshd and clock ---------------------------------------------------------------------------------------------

    def stop_sshd(self, name: str) -> None:
        """No new login; sessions that are open go on."""
        self.out(name, ["sh", "-c", 'kill "$(cat /run/sshd.pid)" && while [ -e /run/sshd.pid ]; do sleep 0.01; done'])

    def start_sshd(self, name: str) -> None:
        host = self._hosts[name]
        self.out(name, host.sshd())
        host.wait_for_port(22)

    def set_clock(self, name: str, ahead_s: float) -> None:
        """What is started in the host from now on, over ssh or by `run`, reads a clock that is so far ahead (or behind).

        By libfaketime in the environment, so a program that is started without that (`env -i`) reads the true clock. Files get
        the true time, as on a shared folder whose server has it.
        """
        host = self._hosts[name]
        host.clock = {
            "LD_PRELOAD": str(faketime_library()),
            "FAKETIME": f"{ahead_s:+f}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "FAKE_UTIME": "1",
        }
        write_sshd_config(host, self._sshd)
        if host.up:
            self.stop_sshd(name)
            self.start_sshd(name)


def faketime_library() -> Path | None:
    """libfaketime, where Debian's package faketime puts it; None where it is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
