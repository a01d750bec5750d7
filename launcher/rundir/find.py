"""RUN as the user writes it -> RunDir: a path, a run id, a job name (its newest run), or nothing (the newest run of all).

DO, but only looking: reads folder names below the runs folder, opens nothing.
"""

from __future__ import annotations

from pathlib import Path

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir


def find_runs(runs_root: Path) -> list[RunDir]:
    """Every run below the runs folder, oldest first: run ids sort by time."""
    if not runs_root.is_dir():
        return []
    found = [path for job in _folders(runs_root) for path in _folders(job) if _is_run(path)]
    # resolved, as create.new_run does: a run's processes are known by its path, whatever links lead to it
    return [RunDir(path.resolve()) for path in sorted(found, key=lambda path: (path.name, str(path)))]


def find_run(text: str | None, runs_root: Path) -> RunDir:
    """The run that is meant. LauncherError E113 where there is none."""
    if text is not None and _is_run(Path(text)):
        return RunDir(Path(text).resolve())
    runs = find_runs(runs_root)
    if text is None:
        matching = runs
    else:
        matching = [run for run in runs if run.path.name == text] or [run for run in runs if run.path.parent.name == text]
    if not matching:
        raise LauncherError(_missing(text, runs_root, runs))
    return matching[-1]


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _is_run(path: Path) -> bool:
    return (path / "job.json").is_file()


def _missing(text: str | None, runs_root: Path, runs: list[RunDir]) -> Problem:
    names = sorted({run.path.parent.name for run in runs})
    known = f"there are runs of {', '.join(names[:8])}" if names else "no run there yet; start one: launcher run JOB"
    what = "no run to take" if text is None else f"{text!r} is no run folder, run id or job name below {runs_root}"
    return Problem(code="E113", where=str(runs_root), what=what, hint=known)
