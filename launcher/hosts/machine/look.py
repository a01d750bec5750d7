"""What one host says about itself, on the host: the planner's facts and those that `doctor` compares. DO, only looking.

Errors are facts too: a host whose driver does not answer says so, instead of not answering itself. It is imported by a cold
Python on every host at once, so it imports little.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import resource
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import launcher
from launcher.errors import LauncherError
from launcher.hosts.machine.capacity import free_memory_bytes, total_memory_bytes, usable_cores
from launcher.hosts.machine.facts import HostFacts
from launcher.hosts.machine.gpus import find_gpus
from launcher.hosts.machine.health import find_health
from launcher.hosts.machine.identity import machine_id
from launcher.hosts.machine.installed import installed_packages
from launcher.hosts.machine.leftovers import find_runs_alive
from launcher.hosts.machine.networks import has_fabric, interface_names, interface_of, network_gbs

_SHM = "/dev/shm"
_HASH_CHARACTERS = 12
READ, WRITE = "read", "write"


def look(
    host: str,
    *,
    folder: Path,
    paths: Sequence[tuple[str, str]] = (),
    share: str = "none",
    environ: Mapping[str, str] = os.environ,
) -> HostFacts:
    """Facts of this host. Disk facts are those of `folder`, or of where it would lie; `paths`: (path, READ or WRITE).

    What ranks read is sent to a host with a disk of its own (`share` missing): it need not be there.
    """
    used = [(path, use) for path, use in paths if use != READ or share != "missing"]
    problems: list[str] = []
    try:
        gpus = tuple(find_gpus(environ))
    except LauncherError as error:
        gpus, problems = (), [problem.what for problem in error.problems]
    exists = next(parent for parent in (folder, *folder.parents) if parent.exists())
    files, shm = os.statvfs(exists), shutil.disk_usage(_SHM) if os.path.isdir(_SHM) else None
    locked_bytes = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    own_address = _own_address()
    return HostFacts(
        host=host,
        name=socket.gethostname(),
        machine=machine_id(),
        user=_user(),
        python=sys.version.split()[0],
        executable=sys.executable,
        system=f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
        packages=installed_packages(),
        code=code_hashes(),
        cores=usable_cores(),
        memory_bytes=total_memory_bytes(),
        free_memory_bytes=free_memory_bytes(),
        shm_bytes=shm.total if shm else 0,
        shm_free_bytes=shm.free if shm else 0,
        gpus=gpus,
        health=find_health([gpu.number for gpu in gpus]),
        driver=_driver(),
        network_gbs=network_gbs(),
        fabric=has_fabric(),
        interfaces=tuple(interface_names()),
        own_address=own_address,
        own_card=interface_of(own_address) if own_address else None,
        disk_free_bytes=files.f_bavail * files.f_frsize,
        inodes_free=files.f_favail if files.f_files else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_bytes=None if locked_bytes == resource.RLIM_INFINITY else locked_bytes,
        unusable={path: refusal for path, use in used if (refusal := _refusal(path, use))},
        share=share,
        left=find_runs_alive(),
        problems=tuple(problems),
    )


def code_hashes() -> dict[str, str]:
    """Every source file of this package -> its hash: two hosts with the same run the same code, whatever its version says."""
    root, found = os.path.dirname(launcher.__file__), {}
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, root)] = hashlib.sha256(file.read()).hexdigest()[:_HASH_CHARACTERS]
    return found


def code_sha256() -> str:
    """One hash of them all."""
    return hashlib.sha256(json.dumps(code_hashes(), sort_keys=True).encode()).hexdigest()


def _refusal(path: str, use: str) -> str:
    """What the system says to the use of a path; empty where it can be used."""
    if not os.path.exists(path):
        return "is not there"
    if use == WRITE:
        return "" if os.access(path, os.W_OK | os.X_OK) and os.path.isdir(path) else "may not be written"
    return "" if os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)) else "may not be read"


def _user() -> str:
    """By the system's list of users, as ssh does; a number where that has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _own_address() -> str | None:
    """Where this host's own name leads: gloo has the other ranks come there. Like gloo, the first that can be bound."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    for family, kind, protocol, _, place in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as tried:
            tried.bind(place)
            return str(place[0])
    return None


def _driver() -> str | None:
    """Version of the NVIDIA driver, as the kernel tells it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)
