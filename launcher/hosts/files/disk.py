"""Which hosts have a run folder on one disk, found out without asking each other. DO, names and links only.

The first that claims a stage's folder in an attempt makes a link there whose text is its name. To make it and to find it there
is one step for the file server, so that no two win, and nobody has to wait until a new file is seen over NFS.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from launcher.rundir.folder import RunDir

CONTROLLER = "/"  # who claims the controller's disk: no host has this name
WORDS = ("done", "leave", "problems", "deaths")  # folders of a stage that are of one attempt: never carried, told as they come
ARRIVING = ".arriving-"  # folders in which files lie until they are whole
_CLAIM = ".disk-"


def claim(run: RunDir, stage: str, attempt: str, name: str) -> str:
    """Who claimed the stage's folder first in this attempt; all that get the same answer have one disk.

    The folder is made where it is missing. OSError where it cannot be made.
    """
    run.path.parent.mkdir(parents=True, exist_ok=True)
    run.path.mkdir(mode=0o700, exist_ok=True)
    folder = run.stage(stage).path
    folder.mkdir(parents=True, exist_ok=True)
    link = claim_path(run, stage, attempt)
    try:
        link.symlink_to(name)
    except FileExistsError:
        return os.readlink(link)
    for old in folder.glob(f"{_CLAIM}*"):
        if old != link:
            old.unlink(missing_ok=True)
    return name


def claim_path(run: RunDir, stage: str, attempt: str) -> Path:
    """It is there until the next attempt: what lies beside it is of this one."""
    return run.stage(stage).path / f"{_CLAIM}{attempt}"


def forget_words(run: RunDir, stage: str) -> None:
    """No marker and no failure of an earlier attempt is left to be told for one of this."""
    for name in WORDS:
        shutil.rmtree(run.stage(stage).path / name, ignore_errors=True)


def forget_arrivals(run: RunDir) -> None:
    """What was half there when somebody was killed. Nothing else of the run may be at work on this disk."""
    for old in run.path.glob(f"{ARRIVING}*"):
        shutil.rmtree(old, ignore_errors=True)
