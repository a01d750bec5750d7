"""A folder that is built once: whole or absent, whoever else builds it at the same time, and however a build ends.

The folder is filled under a temporary name, gets its manifest last, and is renamed. One without a manifest is unfinished, one
that differs from it is damaged, one with another fingerprint is stale: all three are built anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from launcher.rundir.artifact import find_damage, read_manifest, write_manifest

# What rename says where another builder's entry appeared after we looked; a folder with files in it is ENOTEMPTY on Linux.
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
Build = Callable[[Path], dict[str, object]]


def is_whole(entry: Path, fingerprint: str) -> bool:
    manifest = read_manifest(entry)
    return manifest is not None and manifest.get("fingerprint") == fingerprint and not find_damage(entry)


def cached(entry: Path, fingerprint: str, build: Build) -> bool:
    """Make sure that `entry` is whole; True where it was already. `build` fills a folder and returns facts for its manifest."""
    if is_whole(entry, fingerprint):
        return True
    entry.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name[:16]}."))
    try:
        facts = build(folder)
        write_manifest(folder, {"fingerprint": fingerprint, **facts})
        folder.chmod(0o755)
        _move_in(folder, entry, fingerprint)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return False


def _move_in(folder: Path, entry: Path, fingerprint: str) -> None:
    """Another builder may have been first: what it made stays where it is whole; anything else makes room."""
    while True:
        if not os.path.lexists(entry):
            try:
                folder.rename(entry)
                return
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
        elif is_whole(entry, fingerprint):
            return
        else:
            _set_aside(entry)


def _set_aside(entry: Path) -> None:
    if entry.is_symlink():
        entry.unlink(missing_ok=True)
        return
    aside = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".stale."))
    with contextlib.suppress(FileNotFoundError):  # another builder was quicker
        entry.rename(aside / "entry")
    shutil.rmtree(aside, ignore_errors=True)
