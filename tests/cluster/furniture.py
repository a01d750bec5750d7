"""What a host is furnished with before it boots: keys, names, settings of ssh and sshd, folders of its own.

FOLDER/home             the home that all hosts share
FOLDER/<host>/ssh       its ~/.ssh          FOLDER/<host>/etc    its hosts, hostname, nsswitch.conf, passwd
FOLDER/<host>/disk/…    its private folders FOLDER/<host>/log    its /var/log
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cluster import network
from tests.cluster.host import Host
from tests.cluster.room import FOLDER, HOME

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


def furnish(hosts: Sequence[Host], *, private: Sequence[str], networks: int, ssh: Sequence[str], sshd: Sequence[str]) -> None:
    """Write all files of all hosts, and each host's list of what it sees where. `ssh` and `sshd`: lines that win over ours."""
    home = hosts[0].room.folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    for host in hosts:
        for part in ("etc", "run", "log", "ssh", "disk"):
            (host.folder / part).mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        user, *keys = pool.map(_make_key, [home / "key", *(host.folder / "host_key" for host in hosts)])
    known = "".join(f"{_names(host, networks)} {key}" for host, key in zip(hosts, keys, strict=True))
    etc = {
        "hosts": "127.0.0.1 localhost\n" + "".join(f"{network.address(host.number)} {host.name}\n" for host in hosts),
        "nsswitch.conf": without_dns(Path("/etc/nsswitch.conf").read_text()),
        "passwd": with_home(Path("/etc/passwd").read_text()),
    }
    secrets = {
        "config": "".join(["Host *\n", *(f"  {line}\n" for line in (*ssh, *SSH))]),
        "id_ed25519": (home / "key").read_text(),
        "id_ed25519.pub": user,
        "authorized_keys": user,
        "known_hosts": known,
    }
    for path in (home / "key", home / "key.pub"):
        path.unlink()
    for host in hosts:
        _write(host.folder / "ssh", secrets, folder_mode=0o700, mode=0o600)
        _write(host.folder / "etc", {**etc, "hostname": f"{host.name}\n"}, folder_mode=0o755, mode=0o644)
        write_sshd_config(host, sshd)
        for folder in private:
            _add_disk(host, folder)
        host.binds = _binds(host.name, private)


def write_sshd_config(host: Host, lines: Sequence[str]) -> None:
    """Read by sshd when it starts. What a login's environment has of the host's clock is in it."""
    clock = " ".join(f'"{name}={value}"' for name, value in host.clock.items())
    whole = [f"HostKey {FOLDER}/{host.name}/host_key", *lines, *SSHD, *([f"SetEnv {clock}"] if clock else [])]
    (host.folder / "sshd_config").write_text("".join(f"{line}\n" for line in whole))


def with_home(passwd: str) -> str:
    """Root's home is HOME: ssh, sshd and mpirun ask here and not the environment."""
    rows = [row.split(":") for row in passwd.splitlines()]
    return "".join(":".join([*row[:5], HOME, *row[6:]] if row[0] == "root" else row) + "\n" for row in rows)


def without_dns(nsswitch: str) -> str:
    """Names of hosts come from /etc/hosts alone: an unknown one is unknown at once, not after the time-out of a server."""
    kept = [line for line in nsswitch.splitlines() if not line.startswith("hosts:")]
    return "\n".join([*kept, "hosts: files", ""])


def _binds(name: str, private: Sequence[str]) -> list[tuple[str, str]]:
    """(source, place), to be mounted in this order: ~/.ssh lies in ~, which may be private."""
    mine = f"{FOLDER}/{name}"
    return [
        (f"{FOLDER}/home", HOME),
        (f"{mine}/log", "/var/log"),
        *((f"{mine}/disk{folder}", folder) for folder in private),
        (f"{mine}/ssh", f"{HOME}/.ssh"),
        *((f"{mine}/etc/{file}", f"/etc/{file}") for file in ("hosts", "hostname", "nsswitch.conf", "passwd")),
    ]


def _add_disk(host: Host, folder: str) -> None:
    disk = host.folder / "disk" / folder.lstrip("/")
    disk.mkdir(parents=True)
    if folder == HOME:
        disk.chmod(0o700)
        (disk / ".ssh").mkdir(mode=0o700)
    else:
        shutil.copymode(folder, disk)


def _names(host: Host, networks: int) -> str:
    return ",".join([host.name, *(network.address(host.number, number) for number in range(networks))])


def _make_key(path: Path) -> str:
    """A new key pair; its public line."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.parent.name, "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


def _write(folder: Path, files: Mapping[str, str], *, folder_mode: int, mode: int) -> None:
    folder.chmod(folder_mode)
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
