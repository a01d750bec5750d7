"""`launcher run JOB`: plan, make the run folder, walk the chain under supervision. The first line on stdout is the folder."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime

from launcher.backends.local import PREPARE
from launcher.backends.registry import Starts, load_backend
from launcher.cli.common import add_job, add_json, add_runs, runs_root, say, show, show_json
from launcher.cli.detach import detach
from launcher.cli.report import write_report
from launcher.errors import EXIT_DONE, EXIT_STOPPED, LauncherError, printable
from launcher.report.summary import summarize
from launcher.report.table import report_text
from launcher.rundir.folder import RunDir
from launcher.spec.load import open_job
from launcher.supervise import outside, preflight
from launcher.supervise.chain import Ending
from launcher.supervise.clusters import asked_hosts
from launcher.supervise.control import check_stage, control_new
from launcher.supervise.create import Planned, make_folder, new_run, requests, write_run
from launcher.supervise.drafting import drafted_shapes
from launcher.supervise.giving import give, wait_until_held
from launcher.supervise.planning import plan_here


def add_arguments(parser: ArgumentParser) -> None:
    add_job(parser)
    add_runs(parser)
    add_json(parser)
    add_stage(parser)
    add_detach(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the commands that would run; write and start nothing")


def add_stage(parser: ArgumentParser) -> None:
    parser.add_argument("--stage", metavar="NAME", help="run only this stage of the chain")


def stage_words(args: Namespace) -> list[str]:
    return ["--stage", args.stage] if args.stage else []


def add_detach(parser: ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help="return once the run has started; see status, logs, stop")


def run(args: Namespace) -> int:
    loaded, root = open_job(args.job, args.overrides), runs_root(args)
    plan = plan_here(loaded, runs_root=root, unknown=drafted_shapes(root), remote=asked_hosts(root))
    planned = Planned(job=loaded.job, job_text=loaded.text, plan=plan)
    check_stage(planned, args.stage)
    folder = new_run(root, planned.job.name, now=datetime.now(UTC), random_bytes=os.urandom)
    if args.dry_run:
        return _dry_run(args, folder, planned)
    if isinstance(backend := load_backend(planned.job.cluster.backend), Starts):
        preflight.check_outside(planned.job, planned.plan, writable=root)
        make_folder(folder)
        write_run(folder, planned)
        return run_outside(args, folder, backend, detach=args.detach)
    for one in preflight.check(planned.job, planned.plan, writable=root):
        say(one.problem.text())
    make_folder(folder)
    if args.detach:
        write_run(folder, planned)
        return detach(folder, stage_words(args), as_json=args.json)
    show(str(folder.path))
    return finish(folder, control_new(folder, planned, only=args.stage), as_json=args.json)


def run_outside(args: Namespace, folder: RunDir, backend: Starts, *, detach: bool) -> int:
    """Have the nodes of a written run started, and see it to its end; or return once they are asked for."""
    words = stage_words(args)
    if not detach:
        show(str(folder.path))
        ending, said = outside.follow(folder, lambda: give(folder, backend, words))
        return finish(folder, ending, as_json=args.json, said=said)
    wait_until_held(folder, give(folder, backend, words))
    show(str(folder.path))
    if args.json:
        show_json({"schema": 1, "run": str(folder.path)})
    else:
        say("it goes on without this terminal; see launcher status, logs, stop")
    return EXIT_DONE


def finish(folder: RunDir, ending: Ending, *, as_json: bool, said: str = "") -> int:
    """The end table on stdout and in the folder, the first cause of a failure on stderr; the exit code.

    `said`: what node 0 has said of it already, where one has.
    """
    summary = summarize(folder, alive=False)
    write_report(folder, summary)
    if as_json:
        show_json(summary.as_dict())
    else:
        show(f"\n{report_text(summary)}")
    if ending.state == "stopped":
        saved = "" if ending.step is None else f"saved step {ending.step}, "
        _say_once(f"{saved}stopped; go on with: launcher resume {shlex.quote(str(folder.path))}", said)
        return EXIT_STOPPED
    if ending.state == "failed":
        error = LauncherError(ending.problems)
        _say_once(error.text(), said)
        return error.exit_code
    return EXIT_DONE


def _say_once(text: str, said: str) -> None:
    if printable(text) not in said:
        say(text)


def _dry_run(args: Namespace, folder: RunDir, planned: Planned) -> int:
    """The lines of a shell that do the same: the first writes the run folder, which the others read."""
    overrides = [word for one in args.overrides for word in ("--set", one)]
    render = [sys.executable, "-P", "-m", "launcher", "render", os.path.abspath(args.job), *overrides]
    commands = [shlex.join([*render, "-o", str(folder.path)])]
    if isinstance(backend := load_backend(planned.job.cluster.backend), Starts):
        start = ["sbatch"] if backend.is_queued(os.environ) else ["sh"]
        commands.append(shlex.join([*start, str(backend.script(folder)), *stage_words(args)]))
    else:
        commands += [
            request.shell_text()
            for request in requests(folder, planned)
            if args.stage in (None, request.stage) or request.stage == PREPARE
        ]
    if args.json:
        show_json({"schema": 1, "run": str(folder.path), "commands": commands})
    else:
        show("\n".join(commands))
    return EXIT_DONE
