"""`launcher render JOB -o DIR`: every file and command of `run`, as a run folder that works without this program."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from launcher.backends.registry import Renders, load_backend
from launcher.cli.common import add_job, add_json, add_runs, runs_root, say, show, show_json
from launcher.errors import EXIT_DONE, LauncherError, Problem
from launcher.rundir.folder import RunDir
from launcher.spec.load import open_job
from launcher.supervise.clusters import asked_hosts
from launcher.supervise.create import Planned, make_folder, write_run
from launcher.supervise.drafting import drafted_shapes
from launcher.supervise.planning import plan_of

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def add_arguments(parser: ArgumentParser) -> None:
    add_job(parser)
    add_json(parser)
    add_runs(parser)
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder to write; must not exist yet")


def run(args: Namespace) -> int:
    loaded = open_job(args.job, args.overrides)
    root = runs_root(args)
    plan = plan_of(loaded, runs_root=root, unknown=drafted_shapes(root), remote=asked_hosts(root))
    run_dir = RunDir(Path(os.path.realpath(args.output)))
    if run_dir.path.exists():
        what = "is there already; nothing is written over"
        raise LauncherError(Problem(code="E119", where=str(args.output), what=what, hint="name a folder that does not exist"))
    backend = load_backend(loaded.job.cluster.backend)
    if isinstance(backend, Renders):
        _check_name(run_dir, args.output)
    make_folder(run_dir)
    write_run(run_dir, Planned(job=loaded.job, job_text=loaded.text, plan=plan))
    files = sorted(str(path.relative_to(run_dir.path)) for path in run_dir.path.rglob("*") if path.is_file())
    if args.json:
        show_json({"schema": 1, "folder": str(run_dir.path), "files": files})
    else:
        show("\n".join(str(run_dir.path / name) for name in files))
    if isinstance(backend, Renders):
        say(f"start it with: {backend.next_step(loaded.job, run_dir)}")
    return EXIT_DONE


def _check_name(run_dir: RunDir, output: Path) -> None:
    """LauncherError E119: nodes know the run by the name of its folder."""
    if not re.fullmatch(RUN_NAME, run_dir.path.name):
        what = "the folder's name is the run's name on the nodes, and may hold letters, digits, . _ and - alone"
        raise LauncherError(Problem(code="E119", where=str(output), what=what, hint="name it as `run-1`"))
