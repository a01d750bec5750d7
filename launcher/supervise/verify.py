"""Folder with a manifest -> its damage, hashed again only where a file has changed since this controller last looked. DO."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from launcher.rundir.artifact import Damage, find_damage

Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(slots=True)
class Verifier:
    """Remembers which folders were whole, by size, change time and inode of every file: hashing 13 GB twice takes long."""

    _whole: dict[Path, Signature] = field(default_factory=dict)

    def find_damage(self, folder: Path) -> list[Damage]:
        before = _signature(folder)
        if self._whole.get(folder) == before:
            return []
        damage = find_damage(folder)
        if not damage:
            self._whole[folder] = before
        return damage


def _signature(folder: Path) -> Signature:
    stats = ((str(path), os.stat(path)) for path in sorted(folder.rglob("*")))
    return tuple((name, stat.st_size, stat.st_ctime_ns, stat.st_ino) for name, stat in stats)
