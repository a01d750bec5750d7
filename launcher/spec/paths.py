"""Names that may be local paths: told from hub ids, made absolute, and looked at. Reads folders, opens no data.

A name is local when it begins with ./ ../ / or ~, ends like a data file, or exists beside the job file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import printable
from launcher.spec.cluster import RENDERED
from launcher.spec.data import PYTHON_DOCS
from launcher.spec.places import FieldPath, Finding, value_at
from launcher.spec.wording import listed, nearest, shown

DATA_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".txt")
_HUB_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?"
_MAX_LOOKED_AT = 20_000


def path_fields(raw: object) -> Iterator[FieldPath]:
    """Every field of a raw job file that may hold a local path."""
    yield from (("model", "source"), ("model", "tokenizer"))
    yield from (("cluster", name) for name in ("hostfile", "prices", "ssh_config"))
    stages = value_at(raw, ("stages",))
    for index in range(len(stages) if isinstance(stages, list) else 0):
        yield ("stages", index, "data", "source")
        yield ("stages", index, "data", "held_out", "source")


def resolve(raw: object, folder: Path) -> list[Finding]:
    """Make every local path in `raw` absolute, in place; a finding for each that cannot be used."""
    findings, shared = [], shared_folder(raw)
    for path in path_fields(raw):
        text = value_at(raw, path)
        if not isinstance(text, str) or not text or text == PYTHON_DOCS or printable(text) != text:
            continue  # absent, or for the schema to refuse
        local = local_path(text, folder, is_file=path[0] == "cluster")
        if local and shared and path[0] != "cluster":
            problem = None if local.is_relative_to(shared) else _not_shared(shared)
        else:
            problem = _unusable(path, text, local) if local else _no_hub_id(text)
        if problem:
            what, hint = problem
            findings.append(Finding(code="E114", path=path, what=f"{shown(text)} {what}", hint=hint))
        elif local:
            value_at(raw, path[:-1])[path[-1]] = str(local)  # type: ignore[index]
    return findings


def shared_folder(raw: object) -> Path | None:
    """The folder of nodes that come by themselves: what lies on it is not seen from here. None: paths are of this machine."""
    backend = value_at(raw, ("cluster", "backend"))
    if backend not in RENDERED:
        return None
    block = "kubernetes" if backend == "kubernetes" else "cloud"
    runs = value_at(raw, ("cluster", block, "runs"))
    return Path(runs if isinstance(runs, str) and runs.startswith("/") else "/runs")


def _not_shared(shared: Path) -> tuple[str, str]:
    return "is a path of this machine, which the nodes do not have", f"put it on their volume and write {shared}/…, or a hub id"


def local_path(text: str, folder: Path, *, is_file: bool = False) -> Path | None:
    """The absolute path that `text` means, or None where it is a hub id."""
    if "://" in text:
        return None
    path = Path(os.path.expanduser(text))
    beside = Path(os.path.normpath(folder.absolute() / path))
    looks_local = text.startswith(("./", "../", "/", "~")) or text in (".", "..") or text.endswith(DATA_ENDINGS)
    return beside if looks_local or is_file or _exists(beside) else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def _no_hub_id(text: str) -> tuple[str, str] | None:
    if "://" in text:
        return "is a URL", "download it and name the file, or name a Hugging Face id"
    if not re.fullmatch(_HUB_ID, text):
        return "is neither a path that exists nor a Hugging Face id", "write ./folder/file.jsonl or owner/name"
    return None


def _unusable(field: FieldPath, text: str, path: Path) -> tuple[str, str] | None:
    """What keeps a local path from being used as what the field asks for, and the nearest that would work."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist", _hint_beside(path)
    except OSError as error:
        return f"cannot be read: {(error.strerror or 'unknown reason').lower()}", "check the path and its permissions"
    if not os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(kind) else 0)):
        return "may not be read by this user", "check its permissions"
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        return "is neither a file nor a folder", "name a file or a folder"
    return _wrong_content(field, path, is_folder=stat.S_ISDIR(kind))


def _wrong_content(field: FieldPath, path: Path, *, is_folder: bool) -> tuple[str, str] | None:
    if field[0] == "cluster":
        names = {"hostfile": "hostfile", "prices": "price file", "ssh_config": "ssh configuration"}
        return ("is a folder", f"name the {names[str(field[1])]} in it") if is_folder else None
    if field[0] == "model":
        needed = ("config.json",) if field[1] == "source" else ("tokenizer.json", "tokenizer_config.json")
        if not is_folder:
            return "is a file, not a Hugging Face folder", f"name the folder that holds {listed(needed)}"
        found = any((path / name).is_file() for name in needed)
        return None if found else (f"holds no {listed(needed)}", "name a Hugging Face folder, as save_pretrained writes it")
    if is_folder:
        found = any(name.endswith(DATA_ENDINGS) for name in _names_below(path))
        return None if found else ("holds no data file", f"put a file in it that ends with {listed(DATA_ENDINGS)}")
    if not path.name.endswith(DATA_ENDINGS):
        return "is of no known kind", f"use a file that ends with {listed(DATA_ENDINGS)}"
    return ("is empty", "write rows into it") if path.stat().st_size == 0 else None


def _names_below(folder: Path) -> Iterator[str]:
    looked_at = 0
    for _, _, names in os.walk(folder):
        yield from names
        looked_at += len(names)
        if looked_at > _MAX_LOOKED_AT:
            return


def _hint_beside(path: Path) -> str:
    """The nearest name in the folder where it was looked for, or the folder that is missing."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    try:
        names = sorted(os.listdir(folder))[:_MAX_LOOKED_AT]
    except OSError:
        return f"looked in {folder}, which cannot be listed"
    meant = nearest(path.name, names)
    return f"did you mean {meant}? Looked in {folder}" if meant else f"looked in {folder}; paths are relative to the job file"
