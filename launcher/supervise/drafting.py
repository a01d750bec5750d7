"""(config.json, runs folder) -> the shape of a model whose family no table has: a process builds it without weights. DO.

It is `python -m launcher.stages blueprint`, in a folder of its own below <runs>/.cache/blueprints/, and runs once for a config.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.backends.local import RESERVED
from launcher.backends.registry import load_backend
from launcher.backends.shell import end_processes, start
from launcher.errors import LauncherError, Problem
from launcher.plan.shape import Config, ModelShape, refuse_quantized
from launcher.rundir.folder import RunDir, read_json, write_json
from launcher.supervise.blueprints import Unknown, blueprint_path, read_blueprint
from launcher.supervise.evidence import problem_from
from launcher.supervise.packages import missing_package, version
from launcher.supervise.watch import last_lines

BUILDERS = ("transformers", "torch")  # packages whose versions decide what is built
LONGEST_S = 300.0
POLL_S = 0.05


def drafted_shapes(runs_root: Path) -> Unknown:
    """Shapes from what is there already, else from a process that is started. LauncherError E212, E213, E404, E407 or E421."""

    def find(config: Config, file: str) -> ModelShape:
        refuse_quantized(config, file=file)
        here = [version(name) for name in BUILDERS]
        missing = [missing_package(name) for name, one in zip(BUILDERS, here, strict=True) if one is None]
        if missing:
            raise LauncherError(missing)
        path = blueprint_path(runs_root, config)
        kept = read_blueprint(path)
        made_here = (
            kept is not None and kept.blueprint is not None and [kept.blueprint.transformers, kept.blueprint.torch] == here
        )
        return kept if kept is not None and made_here else _draft(config, file, path)

    return find


def _draft(config: Config, file: str, path: Path) -> ModelShape:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent.resolve(), prefix=f".{path.stem}-"))
        write_json(folder / "config.json", config)
    except OSError as error:
        what = f"the blueprint of {file} cannot be written: {error.strerror}"
        hint = "choose another folder with --runs DIR or LAUNCHER_RUNS"
        raise LauncherError(Problem(code="E404", where=str(error.filename or path), what=what, hint=hint)) from None
    try:
        code = _run(folder)
        _raise_if_told(folder, file)
        shape = read_blueprint(folder / "blueprint.json")
        if code or shape is None:
            raise LauncherError(_failed(folder, file, code))
        (folder / "blueprint.json").replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return shape


def _run(folder: Path) -> int | None:
    """Exit code; None where it took too long. Whatever ends the wait, Ctrl-C too, ends the process."""
    request = load_backend("local").blueprint_request(RunDir(folder))
    outer = {name: value for name, value in os.environ.items() if name not in RESERVED}
    child = start(request, cwd=folder, log=folder / "log.txt", base_env=outer)
    deadline_s = time.monotonic() + LONGEST_S
    try:
        while (code := child.poll()) is None and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
    finally:
        if child.poll() is None:
            end_processes(str(folder), grace_s=0.0)
    return code


def _raise_if_told(folder: Path, file: str) -> None:
    """What the process says of the config, under the name that the user knows it by."""
    try:
        problems = read_json(folder / "problems.json")["problems"]
    except (OSError, ValueError, KeyError):
        return
    if isinstance(problems, list):
        told = [problem_from(problem) for problem in problems if isinstance(problem, Mapping)]
        raise LauncherError(Problem(code=one.code, where=file, what=one.what, hint=one.hint) for one in told)


def _failed(folder: Path, file: str, code: int | None) -> Problem:
    ended = f"did not end in {LONGEST_S:.0f} s" if code is None else f"ended with exit code {code}"
    what = "\n    ".join([f"the process that builds the model without weights {ended}", *last_lines(folder / "log.txt")])
    hint = "mend what its last lines say; `python -c 'import torch, transformers'` must work"
    return Problem(code="E421", where=file, what=what, hint=hint)
