"""`launcher resume RUN [JOB]`: go on with a run. Finished stages are kept where their inputs are unchanged."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from launcher.backends.registry import Starts, load_backend
from launcher.cli.common import add_json, add_run, runs_root, show
from launcher.cli.detach import detach
from launcher.cli.run import add_detach, add_stage, finish, run_outside, stage_words
from launcher.errors import LauncherError, Problem
from launcher.rundir.find import find_run
from launcher.rundir.folder import RunDir
from launcher.spec.load import LoadedJob, open_job
from launcher.supervise import preflight
from launcher.supervise.asking import forget_request
from launcher.supervise.clusters import asked_hosts
from launcher.supervise.control import check_same_job, check_stage, control, stored_job, written_bytes
from launcher.supervise.create import Planned, write_run
from launcher.supervise.drafting import drafted_shapes
from launcher.supervise.giving import holder_now, refusal
from launcher.supervise.lock import refuse_held
from launcher.supervise.planning import plan_here


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "job", metavar="JOB", nargs="?", type=Path, help="changed job file; only stages that it changes are redone"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="change one field of JOB (repeatable)",
    )
    add_json(parser)
    add_stage(parser)
    add_detach(parser)


def run(args: Namespace) -> int:
    folder = find_run(args.run, runs_root(args))
    loaded = _loaded(args) or stored_job(folder)
    check_same_job(folder, loaded.job)
    unknown, written = drafted_shapes(folder.path.parent.parent), written_bytes(folder)
    remote = asked_hosts(folder.path, written_bytes=written)
    plan = plan_here(loaded, runs_root=folder.path, written_bytes=written, unknown=unknown, remote=remote)
    planned = Planned(job=loaded.job, job_text=loaded.text, plan=plan)
    check_stage(planned, args.stage)
    if isinstance(backend := load_backend(planned.job.cluster.backend), Starts):
        return _outside(args, folder, planned, backend)
    if args.detach:
        refuse_held(folder)
        return detach(folder, _words(args), as_json=args.json)
    forget_request(folder)
    show(str(folder.path))
    return finish(folder, control(folder, planned, only=args.stage), as_json=args.json)


def _outside(args: Namespace, folder: RunDir, planned: Planned, backend: Starts) -> int:
    """A run that waits or runs is left as it is, and waited for. LauncherError E507 where it shall be another one."""
    holder = holder_now(folder, backend)
    if holder is None:
        preflight.check_outside(planned.job, planned.plan, writable=folder.path)
        write_run(folder, planned)
    elif args.job or args.stage:
        raise refusal(folder, holder)
    return run_outside(args, folder, backend, detach=args.detach)


def _words(args: Namespace) -> list[str]:
    """What the controller has to be told again, in a folder of its own."""
    job = [os.path.abspath(args.job)] if args.job else []
    return [*job, *(word for one in args.overrides for word in ("--set", one)), *stage_words(args)]


def _loaded(args: Namespace) -> LoadedJob | None:
    if args.job is not None:
        return open_job(args.job, args.overrides)
    if args.overrides:
        what = "--set changes a job file, and none is given"
        raise LauncherError(Problem(code="E111", where="", what=what, hint="launcher resume RUN JOB --set PATH=VALUE"))
    return None
