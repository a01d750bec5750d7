"""Manifests: a folder whose every file is listed with size and sha256, so that what is loaded is what was written.

Used for what stages hand on and for checkpoints. A folder without a manifest is not finished; a manifest that does not
match its folder is damage, never silently accepted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from launcher.rundir.folder import read_json, sync_folder, write_json

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One difference between a folder and its manifest."""

    file: str
    what: str


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }


def file_entry(path: Path) -> dict[str, object]:
    """What a manifest says of a file: its bytes and sha256. Flushes it to disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_manifest(
    folder: Path, facts: Mapping[str, object], *, entries: Mapping[str, Mapping[str, object]] = MappingProxyType({})
) -> None:
    """Hash every file below `folder`, flush them to disk, then write manifest.json: {"schema", "files", **facts}.

    `entries` are those of files that others have written and hashed; this process need not even see them yet.
    """
    files = {name: file_entry(path) for name, path in _files(folder).items() if name not in entries} | dict(entries)
    for parent in {path.parent for path in _files(folder).values()}:
        sync_folder(parent)
    write_json(folder / MANIFEST, {"schema": SCHEMA, "files": dict(sorted(files.items())), **facts})


def read_manifest(folder: Path) -> dict[str, object] | None:
    """The manifest, or None where there is none or it cannot be read: the folder then counts as unfinished."""
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return None
    return manifest if manifest.get("schema") == SCHEMA and isinstance(manifest.get("files"), dict) else None


def manifest_sha256(folder: Path) -> str:
    """Names the exact content of a finished folder: the hash of its manifest."""
    return sha256_file(folder / MANIFEST)


def find_damage(folder: Path, *, part: int = 0, parts: int = 1) -> list[Damage]:
    """Every file that is missing, added or changed against the manifest. Reads and hashes all of them.

    `parts` processes can share the work: each looks at its part of the files, and all their damage together is the damage.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return [Damage(file=MANIFEST, what="missing or unreadable")]
    listed = manifest["files"]
    assert isinstance(listed, dict)
    present, damage = _files(folder), []
    for name in sorted(set(present) - set(listed))[part::parts]:
        damage.append(Damage(file=name, what="is not in the manifest"))
    for name, entry in list(listed.items())[part::parts]:
        if name not in present:
            damage.append(Damage(file=name, what="is missing"))
        elif present[name].stat().st_size != entry.get("bytes"):
            damage.append(Damage(file=name, what=f"has {present[name].stat().st_size} bytes instead of {entry.get('bytes')}"))
        elif sha256_file(present[name]) != entry.get("sha256"):
            damage.append(Damage(file=name, what="has another sha256"))
    return damage
