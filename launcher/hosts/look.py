"""What one host says about itself, on the host: the planner's facts and those that `doctor` compares. DO, only looking.

Errors are facts too: a host whose driver does not answer says so, instead of not answering itself.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

import launcher
from launcher.errors import LauncherError
from launcher.hosts.gpus import GpuFact, find_gpus
from launcher.hosts.machine import free_disk_bytes, free_memory_bytes, total_memory_bytes, usable_cores
from launcher.hosts.networks import network_gbs

# What the ranks import: another version on one host trains something else, or waits for ever (docs/lab-log.md).
PACKAGES = ("torch", "deepspeed", "transformers", "trl", "peft", "datasets", "accelerate", "safetensors", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One host. Sizes in bytes, times in seconds since the epoch by the host's own clock."""

    host: str  # as the hostfile has it
    name: str  # as the host calls itself
    user: str
    python: str
    executable: str
    system: str
    versions: dict[str, str | None]
    code: str  # sha256 of the launcher package's sources
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    shm_free_bytes: int
    gpus: tuple[GpuFact, ...]
    driver: str | None
    network_gbs: float | None
    disk_free_bytes: int
    inodes_free: int | None  # None: the file system does not count them
    open_files: int
    clock_s: float
    problems: tuple[str, ...] = ()


def look(host: str, *, folder: Path, environ: Mapping[str, str] = os.environ) -> HostFacts:
    """Facts of this host; disk facts are those of `folder`, or of where it would lie."""
    problems: list[str] = []
    try:
        gpus = tuple(find_gpus(environ))
    except LauncherError as error:
        gpus, problems = (), [problem.what for problem in error.problems]
    exists = next(parent for parent in (folder, *folder.parents) if parent.exists())
    files = os.statvfs(exists)
    return HostFacts(
        host=host,
        name=socket.gethostname(),
        user=getpass.getuser(),
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.platform(),
        versions={name: version_of(name) for name in ("zerolaunch", *PACKAGES, "bitsandbytes")},
        code=code_sha256(),
        cores=usable_cores(),
        memory_bytes=total_memory_bytes(),
        free_memory_bytes=free_memory_bytes(),
        shm_free_bytes=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        gpus=gpus,
        driver=_driver(),
        network_gbs=network_gbs(),
        disk_free_bytes=free_disk_bytes(folder),
        inodes_free=files.f_favail if files.f_files else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        clock_s=time.time(),
        problems=tuple(problems),
    )


def facts_as_dict(facts: HostFacts) -> dict[str, object]:
    return asdict(facts)


def facts_from(told: Mapping[str, object]) -> HostFacts:
    """ValueError where a field is missing or of another type: the host has another version."""
    return TypeAdapter(HostFacts).validate_python(told)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_sha256() -> str:
    """One hash of all sources of this package: two hosts with the same run the same code, whatever its version says."""
    root, digest = Path(launcher.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _driver() -> str | None:
    """Version of the NVIDIA driver, as the kernel tells it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)
