"""A local path -> its data files, in order, and only those of one split. DO: looks at names, opens no data."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import read_json
from launcher.train.readers import KINDS

DEFAULT_SPLIT = "train"
# Words by which files and folders of a dataset say which split they are.
SPLIT_WORDS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_WORDS |= {"dev": "validation", "eval": "test", "held_out": "held_out"}
_WORD = re.compile(r"^([a-z_]+?)(?:[-_.]?\d.*)?(?:\.[a-z]+)?$")


def data_files(path: Path, split: str, where: str) -> list[Path]:
    """The data files that a path means, in the order of their names."""
    if path.is_dir():
        files = _saved_dataset(path, split, where) or _folder(path, split, where)
    elif path.is_file():
        files = [path]
        if split != DEFAULT_SPLIT:
            what = f"data.split is {split!r}, but {path} is one file"
            raise LauncherError(
                Problem(code="E539", where=where, what=what, hint="remove the split, or name the file of that split")
            )
    else:
        what = f"{path} does not exist"
        raise LauncherError(Problem(code="E530", where=where, what=what, hint=_beside(path)))
    problems = [problem for file in files if (problem := _file_problem(file))]
    if problems:
        raise LauncherError(problems)
    return files


def _file_problem(file: Path) -> Problem | None:
    if file.suffix not in KINDS:
        what = f"a file of kind {file.suffix or 'without an ending'!r} cannot be read"
        return Problem(code="E531", where=str(file), what=what, hint=f"use one of {', '.join(KINDS)}")
    if not os.access(file, os.R_OK):
        return Problem(code="E530", where=str(file), what="the file may not be read", hint="check its permissions")
    return None


def _saved_dataset(path: Path, split: str, where: str) -> list[Path]:
    """Files of a folder that `datasets` wrote with save_to_disk; empty where it is another folder."""
    if (path / "dataset_dict.json").is_file():
        splits = [str(name) for name in _listed(path / "dataset_dict.json", "splits")]
        if split not in splits:
            raise LauncherError(_no_split(path, split, splits, where))
        path = path / split
    if not (path / "state.json").is_file():
        return []
    return [path / str(entry["filename"]) for entry in _listed(path / "state.json", "_data_files") if "filename" in entry]


def _listed(file: Path, key: str) -> list:
    """The list under `key` in a file that `datasets` wrote. LauncherError E531 where it cannot be read."""
    try:
        found = read_json(file).get(key, ())
    except (OSError, ValueError) as error:
        hint = "save the dataset again with save_to_disk"
        raise LauncherError(Problem(code="E531", where=str(file), what=f"cannot be read: {error}", hint=hint)) from error
    return list(found) if isinstance(found, list | tuple) else []


def _folder(path: Path, split: str, where: str) -> list[Path]:
    """Data files below a folder. Where names say which split a file is, only those of `split`: train and test never mix."""
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in KINDS and file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        what = f"{path} holds no data file"
        raise LauncherError(Problem(code="E536", where=where, what=what, hint=f"files end with {', '.join(KINDS)}"))
    splits = {file: _split_of(file.relative_to(path)) for file in found}
    named = sorted({name for name in splits.values() if name})
    if not named and split == DEFAULT_SPLIT:
        return found
    chosen = [file for file in found if splits[file] == SPLIT_WORDS.get(split, split)]
    if not chosen:
        raise LauncherError(_no_split(path, split, named, where))
    return chosen


def _split_of(file: Path) -> str | None:
    """`train.jsonl`, `test-00000-of-00002.parquet`, `validation/part1.csv` -> the split they say they are."""
    for part in reversed(file.parts):
        match = _WORD.match(part.lower())
        if match and match.group(1) in SPLIT_WORDS:
            return SPLIT_WORDS[match.group(1)]
    return None


def _no_split(path: Path, split: str, named: Sequence[str], where: str) -> Problem:
    what = f"{path} has no split {split!r}; its files say {', '.join(named) if named else 'no split'}"
    return Problem(code="E536", where=where, what=what, hint=f"data.split: {named[0]}" if named else "remove data.split")


def _beside(path: Path) -> str:
    folder = path.parent
    names = sorted(entry.name for entry in folder.iterdir())[:8] if folder.is_dir() else []
    return f"{folder} holds {', '.join(names)}" if names else f"the folder {folder} does not exist or is empty"
