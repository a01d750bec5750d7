"""Where a host's keepers can be found: one private folder per user, one socket per run. DO, names and permissions only.

Not in $XDG_RUNTIME_DIR, which the system empties when the last login ends, while the ranks go on.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path


class NotPrivate(OSError):
    """Somebody else made the folder: a keeper in it would take their orders."""


@dataclass(frozen=True, slots=True)
class Room:
    """The names of one run's keeper on this host."""

    folder: Path
    name: str

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.name}.sock"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.name}.lock"

    @property
    def output(self) -> Path:
        """What launch.py prints; the keeper tells it on."""
        return self.folder / f"{self.name}.out"

    @property
    def log(self) -> Path:
        """What the keeper itself says: nothing, but for a bug."""
        return self.folder / f"{self.name}.log"


def room_of(token: str) -> Room:
    """The folder is made where it is missing. NotPrivate where it is not this user's alone."""
    folder = Path(tempfile.gettempdir()) / f"launcher-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NotPrivate(f"{folder} is not a folder of this user alone")
    name = f"{token}\0{os.uname().nodename}"  # hosts may share the folder
    return Room(folder, hashlib.sha256(name.encode()).hexdigest()[:24])
