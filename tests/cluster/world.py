"""Hosts for tests on one machine: `with Cluster(hosts=2) as cluster:` makes node1 and node2, and leaves nothing behind.

A host is a set of Linux namespaces: its own processes (pid 1 is host.sh), name, network card, sshd with a host key, /run,
/dev/shm, /var/log, ~ and /etc/hosts. Everything else is this machine's own file system, which all hosts share and may write,
as over NFS; `private` names folders of which every host has its own, empty at first.

    cluster.run("node1", ["ssh", "node2", "hostname"])       without ssh into node1; with ssh from there
    cluster.crash("node2"); cluster.boot("node2")            SIGKILL of everything in it; private folders are kept
    cluster.cable("node2", up=False)                         silence; peers only ever time out

Everything hangs on one process, the room: pid 1 of a namespace around all hosts, in whose memory the keys, logs and private
folders lie, and which ends when its stdin does. So a test that is killed takes the whole cluster along, in any state of it, and
nothing has to be cleaned up: no folder, no mount, no name in /run/netns, no process. The machine's ~/.ssh, /etc and network are
not touched: root's home inside is /run/home, by an /etc/passwd of the hosts' own.

What the machine has to have: needs.py. SLURM in the hosts: slurm.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cluster import network
from tests.cluster.namespaces import only_child, start_inside

HOME = "/run/home"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"HOME": HOME, "USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8", "TERM": "dumb", "PATH": PATH}
LOGIN = "login"
FOLDER = "/run/cluster"  # the cluster's own files, as the room and every host see them
INIT = Path(__file__).with_name("host.sh")
WAIT_S = 20.0

# UsePAM: no session files and limits of this machine. StrictModes, MaxSessions and the rest are OpenSSH's own.
SSHD = (
    "PermitRootLogin prohibit-password",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
    "UsePAM no",
    "MaxStartups 100",
    "PrintMotd no",
    "PrintLastLog no",
    "PidFile /run/sshd.pid",
    "LogLevel VERBOSE",
    "Subsystem sftp internal-sftp",
)
# The key exchange is for speed alone: OpenSSH's own choice costs 65 ms of CPU more a login. Keep-alive is OpenSSH's: none.
SSH = ("StrictHostKeyChecking yes", "BatchMode yes", "LogLevel ERROR", "ConnectTimeout 5", "KexAlgorithms curve25519-sha256")


class HostError(AssertionError):
    """A command in a host that had to succeed did not, or a host does not come up."""


@dataclass(slots=True)
class Host:
    name: str
    number: int
    unshare: subprocess.Popen[str] | None = None  # the parent of pid 1; it ends when the host does
    pid: int = 0  # of its pid 1, as this machine sees it
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    binds: list[tuple[str, str]] = field(default_factory=list)
    clock: dict[str, str] = field(default_factory=dict)

    @property
    def up(self) -> bool:
        return self.unshare is not None and self.unshare.poll() is None

    def wait_for_end(self) -> None:
        """A pid namespace is gone when all in it were waited for: those that we started, by us."""
        for process in (*self.started, *filter(None, [self.unshare])):
            process.wait(WAIT_S)
        self.started.clear()


class Cluster:
    """node1 … nodeN and, with `login=True`, a host of that name to start jobs from, which has no ranks."""

    def __init__(
        self,
        hosts: int = 2,
        *,
        login: bool = False,
        private: Sequence[str] = (),
        networks: int = 1,
        keep_alive_s: int | None = None,
        sshd: Sequence[str] = (),
        shm_size: str = "1g",
    ) -> None:
        """`private` folders have to exist on this machine (/srv and /mnt do everywhere); HOME is one that may be named.
        `keep_alive_s`: ServerAliveInterval of the hosts' ssh (x3). `sshd`: lines of sshd_config that win over SSHD."""
        if not 1 <= hosts <= network.MAX_HOSTS:
            raise ValueError(f"hosts: {hosts} is not in 1 to {network.MAX_HOSTS}")
        for folder in private:
            if folder != HOME and not (Path(folder).is_absolute() and Path(folder).is_dir()):
                raise ValueError(f"private: {folder!r} is no folder of this machine; /srv and /mnt are everywhere")
        self.nodes = [f"node{number}" for number in range(1, hosts + 1)]
        numbers = {LOGIN: 0} if login else {}
        numbers |= {name: number for number, name in enumerate(self.nodes, start=1)}
        self._hosts = {name: Host(name, number) for name, number in numbers.items()}
        self._private, self._networks, self._shm_size = tuple(private), networks, shm_size
        alive = () if keep_alive_s is None else (f"ServerAliveInterval {keep_alive_s}", "ServerAliveCountMax 3")
        self._ssh, self._sshd = (*SSH, *alive), (*sshd, *SSHD)
        self._room: subprocess.Popen[str] | None = None
        self._room_pid = 0

    # --- up and down ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        try:
            self._open_room()
            self._in_room(["sh", "-s"], stdin=network.wiring(self._numbers(), networks=self._networks))
            self._lay_out()
            self.boot(*self._hosts)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """SIGKILL of the room and so of everything."""
        if self._room is None:
            return
        if self._room_pid and self._room.poll() is None:
            os.kill(self._room_pid, signal.SIGKILL)
        for host in self._hosts.values():
            host.wait_for_end()
        self._room.communicate(timeout=WAIT_S)
        self._room = None

    def boot(self, *names: str) -> None:
        """Start hosts that are down. Returns when each one's sshd listens."""
        hosts = [self._hosts[name] for name in names]
        for host in hosts:
            self._power_on(host)
        for host in hosts:
            self._wait_for_sshd(host)

    def crash(self, name: str) -> None:
        """SIGKILL of everything in the host. Its kernel still refuses connections; for silence, cut the cable first."""
        host = self._up(name)
        os.kill(host.pid, signal.SIGKILL)
        host.wait_for_end()

    def is_up(self, name: str) -> bool:
        return self._hosts[name].up

    # --- what runs in a host ----------------------------------------------------------------------------------------

    def start(
        self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = HOME, **popen: Any
    ) -> subprocess.Popen[str]:
        """A program in a host, in a clean environment and `env`. Signals reach the program; its pid is this machine's."""
        host = self._up(name)
        whole = {**ENVIRONMENT, **host.clock, **(env or {})}
        process = start_inside(host.pid, argv, cwd=cwd, env=whole, **{"stdin": subprocess.DEVNULL, **popen})
        host.started.append(process)
        return process

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
        return _finish(process, argv, stdin=stdin, timeout_s=timeout_s)

    def out(self, name: str, argv: Sequence[str], **how: Any) -> str:
        """What a program that must succeed prints, without the last line end."""
        return _must(self.run(name, argv, **how), where=name)

    # --- files ------------------------------------------------------------------------------------------------------

    def path(self, name: str, path: str | Path) -> Path:
        """A path of a host that is up, for reading and writing from here. Absolute links on the way lead out of the host."""
        return Path(f"/proc/{self._up(name).pid}/root{path}")

    def disk(self, name: str, folder: str) -> Path:
        """A host's `private` folder from outside, also while the host is down."""
        assert folder in self._private, folder
        return self._folder / name / "disk" / folder.lstrip("/")

    def ssh_folder(self, name: str) -> Path:
        """~/.ssh of a host: config, id_ed25519, id_ed25519.pub, authorized_keys, known_hosts. Kept over a crash."""
        return self._folder / name / "ssh"

    def etc_hosts(self, name: str) -> Path:
        """/etc/hosts of one host, to be written in place."""
        return self._folder / name / "etc" / "hosts"

    def sshd_log(self, name: str) -> str:
        return (self._folder / name / "sshd.log").read_text()

    def overlay(self, name: str, path: str | Path, replacement: str | Path) -> None:
        """One host sees another file or folder in this place, now and after each boot. Both have to exist on this machine."""
        host = self._hosts[name]
        host.binds.append((str(replacement), str(path)))
        self._write_binds(host)
        if host.up:
            self.out(name, ["mount", "--bind", str(replacement), str(path)])

    def hostfile(self, slots: int = 1) -> str:
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
        self._in_room(["nft", "-f", "-"], net=name, stdin=network.drop(f"ip saddr {{ {addresses} }}"))

    def filter(self, name: str, tcp_port: int = 22) -> None:
        """A firewall that drops what comes for this port."""
        self._in_room(["nft", "-f", "-"], net=name, stdin=network.drop(f"tcp dport {tcp_port}"))

    def slow(self, name: str, kbit: int) -> None:
        """A host sends at most so many kbit/s on eth0."""
        limit = ["rate", f"{kbit}kbit", "burst", "32kb", "latency", "400ms"]
        self._in_room(["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *limit], net=name)

    def heal(self, name: str) -> None:
        """No deaf, filter and slow on this host any more; its cables are plugged in."""
        self._in_room(["nft", "-f", "-"], net=name, stdin="add table inet fault\ndelete table inet fault\n")
        self._in_room(["sh", "-c", "tc qdisc del dev eth0 root 2>/dev/null || true"], net=name)
        for number in range(self._networks):
            self.cable(name, up=True, network_number=number)

    # --- sshd and clock ---------------------------------------------------------------------------------------------

    def stop_sshd(self, name: str) -> None:
        """No new login; sessions that are open go on."""
        self.out(name, ["sh", "-c", 'kill "$(cat /run/sshd.pid)" && while [ -e /run/sshd.pid ]; do sleep 0.01; done'])

    def start_sshd(self, name: str) -> None:
        self.out(name, self._sshd_command(name))
        self._wait_for_sshd(self._hosts[name])

    def set_clock(self, name: str, ahead_s: float) -> None:
        """What is started in the host from now on, over ssh or by `run`, reads a clock that is so far ahead (or behind).

        By libfaketime in the environment, so a program that is started without that (`env -i`) reads the true clock. Files get
        the true time, as on a shared folder whose server has it.
        """
        host = self._hosts[name]
        host.clock = {
            "LD_PRELOAD": str(faketime_library()),
            "FAKETIME": f"{ahead_s:+f}",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        self._write_sshd_config(host)
        if host.up:
            self.stop_sshd(name)
            self.start_sshd(name)

    # --- inside -----------------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        """FOLDER, as this machine sees it."""
        return Path(f"/proc/{self._room_pid}/root{FOLDER}")

    def _numbers(self) -> dict[str, int]:
        return {host.name: host.number for host in self._hosts.values()}

    def _up(self, name: str) -> Host:
        host = self._hosts[name]
        if not host.up:
            raise HostError(f"{name} is down")
        return host

    def _open_room(self) -> None:
        script = "mount -t tmpfs -o mode=755 tmpfs /run && mkdir -m 755 /run/cluster && echo open && exec cat >/dev/null"
        namespaces = ["--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--net"]
        self._room = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", script],
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which then end the room
        )
        assert self._room.stdout is not None
        assert self._room.stderr is not None
        if self._room.stdout.readline() != "open\n":
            raise HostError(f"no room for the cluster: {self._room.stderr.read()}")
        self._room_pid = only_child(self._room.pid)

    def _in_room(self, argv: Sequence[str], *, net: str = "", stdin: str = "") -> str:
        path = f"/proc/{self._room_pid}/root/run/netns/{net}" if net else ""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = start_inside(self._room_pid, argv, cwd="/", env=ENVIRONMENT, net=path, **pipes)
        return _must(_finish(process, argv, stdin=stdin, timeout_s=WAIT_S), where=net or "the room")

    def _lay_out(self) -> None:
        """The cluster's folder: one home for all, and for each host its keys, names, private folders and settings."""
        folder = self._folder
        (folder / "home" / ".ssh").mkdir(parents=True, mode=0o700)
        (folder / "home").chmod(0o700)
        for name in self._hosts:
            (folder / name / "etc").mkdir(parents=True)
        with ThreadPoolExecutor(4) as pool:
            made = pool.map(_make_key, (folder / "user_key", *(folder / name / "host_key" for name in self._hosts)))
            user, *keys = list(made)
        known = "".join(
            f"{host.name},{','.join(network.address(host.number, n) for n in range(self._networks))} {key}"
            for host, key in zip(self._hosts.values(), keys, strict=True)
        )
        names = "127.0.0.1 localhost\n" + "".join(f"{self.address(name)} {name}\n" for name in self._hosts)
        ssh = {
            "config": "".join(["Host *\n", *(f"  {line}\n" for line in self._ssh)]),
            "id_ed25519": (folder / "user_key").read_text(),
            "id_ed25519.pub": user,
            "authorized_keys": user,
            "known_hosts": known,
        }
        etc = {
            "hosts": names,
            "nsswitch.conf": _without_dns(Path("/etc/nsswitch.conf").read_text()),
            "passwd": _with_home(Path("/etc/passwd").read_text()),
        }
        for host in self._hosts.values():
            mine = folder / host.name
            for part in ("run", "log", "ssh", "disk"):
                (mine / part).mkdir()
            (mine / "ssh").chmod(0o700)
            for file, text in ssh.items():
                (mine / "ssh" / file).write_text(text)
                (mine / "ssh" / file).chmod(0o600)
            for file, text in (etc | {"hostname": f"{host.name}\n"}).items():
                (mine / "etc" / file).write_text(text)
            self._write_sshd_config(host)
            self._plan_binds(host)

    def _plan_binds(self, host: Host) -> None:
        mine = f"{FOLDER}/{host.name}"
        host.binds = [(f"{FOLDER}/home", HOME), (f"{mine}/log", "/var/log")]
        for folder in self._private:
            disk = self.disk(host.name, folder)
            disk.mkdir(parents=True, exist_ok=True)
            shutil.copymode(self._folder / "home" if folder == HOME else folder, disk)
            host.binds.append((f"{mine}/disk{folder}", folder))
            if folder == HOME:
                (disk / ".ssh").mkdir(mode=0o700)
        host.binds.append((f"{mine}/ssh", f"{HOME}/.ssh"))
        host.binds += [(f"{mine}/etc/{file}", f"/etc/{file}") for file in ("hosts", "hostname", "nsswitch.conf", "passwd")]
        self._write_binds(host)

    def _write_binds(self, host: Host) -> None:
        lines = (f"{source}\t{place}\n" for source, place in host.binds)
        (self._folder / host.name / "binds").write_text("".join(lines))

    def _write_sshd_config(self, host: Host) -> None:
        clock = " ".join(f'"{name}={value}"' for name, value in host.clock.items())
        lines = [f"HostKey {FOLDER}/{host.name}/host_key", *self._sshd, *([f"SetEnv {clock}"] if clock else [])]
        (self._folder / host.name / "sshd_config").write_text("".join(f"{line}\n" for line in lines))

    def _sshd_command(self, name: str) -> list[str]:
        return ["/usr/sbin/sshd", "-f", f"{FOLDER}/{name}/sshd_config", "-E", f"{FOLDER}/{name}/sshd.log"]

    def _power_on(self, host: Host) -> None:
        assert not host.up, f"{host.name} is up"
        namespaces = ["--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--uts", "--ipc"]
        argv = ["unshare", *namespaces, "sh", str(INIT), host.name, self._shm_size]
        with (self._folder / host.name / "console.log").open("w") as console:
            host.unshare = start_inside(
                self._room_pid,
                argv,
                cwd="/",
                env=ENVIRONMENT,
                net=f"/proc/{self._room_pid}/root/run/netns/{host.name}",
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )

    def _wait_for_sshd(self, host: Host) -> None:
        """sshd goes to the background before it listens, so its end says nothing. Asked of the kernel: a login costs more."""
        assert host.unshare is not None
        console = self._folder / host.name / "console.log"
        table = Path(f"/proc/{host.unshare.pid}/net/tcp")
        until = time.monotonic() + WAIT_S
        while not (host.up and _listens(table, 22)):
            if not host.up:
                raise HostError(f"{host.name} does not come up: {console.read_text()}")
            if time.monotonic() > until:
                raise HostError(f"sshd of {host.name} does not listen: {self.sshd_log(host.name)}")
            time.sleep(0.005)
        host.pid = only_child(host.unshare.pid)


def faketime_library() -> Path | None:
    """libfaketime, where Debian's package faketime puts it; None where it is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


def _finish(
    process: subprocess.Popen[str], argv: Sequence[str], *, stdin: str | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    try:
        out, err = process.communicate(stdin, timeout=timeout_s)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


def _must(done: subprocess.CompletedProcess[str], *, where: str) -> str:
    if done.returncode != 0:
        raise HostError(f"{done.args} in {where} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return str(done.stdout).removesuffix("\n")


def _make_key(path: Path) -> str:
    """A new key pair; its public line."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.parent.name, "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


def _with_home(passwd: str) -> str:
    """Root's home is HOME: ssh, sshd and mpirun ask here and not the environment."""
    lines = [line.split(":") for line in passwd.splitlines()]
    return "".join(":".join([*words[:5], HOME, *words[6:]] if words[0] == "root" else words) + "\n" for words in lines)


def _without_dns(nsswitch: str) -> str:
    """Names of hosts come from /etc/hosts alone: an unknown one is unknown at once, not after the time-out of a server."""
    kept = [line for line in nsswitch.splitlines() if not line.startswith("hosts:")]
    return "\n".join([*kept, "hosts: files", ""])


def _listens(table: Path, port: int) -> bool:
    """Whether a /proc/…/net/tcp has a listener (state 0A) on the port."""
    try:
        rows = table.read_text().splitlines()[1:]
    except OSError:
        return False
    return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)
