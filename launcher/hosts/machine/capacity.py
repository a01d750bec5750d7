"""What this host has and what is free of it: memory, cores, disk, with the limits of its control group. DO, only reading."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 for "no limit"


def total_memory_bytes() -> int:
    limits = [_number(folder / name) for folder, names in _memory_files() for name in names[:1]]
    return min([_meminfo("MemTotal"), *(limit for limit in limits if limit is not None and limit < _UNLIMITED)])


def free_memory_bytes() -> int:
    """What can still be taken without swapping or meeting the control group's limit; file cache counts as free."""
    free = [_meminfo("MemAvailable")]
    for folder, (limit_name, used_name, cache_name) in _memory_files():
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None and limit < _UNLIMITED:
            free.append(max(0, limit - used + _stat(folder / "memory.stat", cache_name)))
    return min(free)


def usable_cores() -> int:
    """Cores of this process's affinity, or fewer where a control group's quota allows only so much time."""
    cores = len(os.sched_getaffinity(0))
    for folder in _cgroup_folders():
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0].isdigit():
            cores = min(cores, max(1, int(words[0]) // int(words[1])))
    return cores


def free_disk_bytes(folder: Path) -> int:
    """Free bytes where `folder` lies, or would lie: asked of the nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def used_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; files that vanish meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


def _memory_files() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Folders of the control groups this process is in, with the names of limit, usage and cache (v2, then v1)."""
    for folder in _cgroup_folders():
        yield folder, ("memory.max", "memory.current", "inactive_file")
    yield _CGROUP / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _cgroup_folders() -> list[Path]:
    """cgroup v2, from our own group up to the root: the tightest of them counts."""
    own = next((line.split(":", 2)[2] for line in _lines(Path("/proc/self/cgroup")) if line.startswith("0::")), "/")
    folder = _CGROUP / own.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(_CGROUP))]


def _meminfo(name: str) -> int:
    line = next((line for line in _lines(Path("/proc/meminfo")) if line.startswith(f"{name}:")), "")
    return int(line.split()[1]) * 1024 if line else 0


def _stat(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _lines(path) if line.split()[:1] == [name]), 0)


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
