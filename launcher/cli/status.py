"""`launcher status [RUN]`: what a run is doing, from its files. Without RUN all runs, then the newest in full."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from launcher.backends.slurm import QueueState
from launcher.cli.common import add_json, add_run, runs_root, say, show, show_json
from launcher.errors import EXIT_DONE, LauncherError
from launcher.report.summary import RunSummary, summarize
from launcher.report.table import head_text, problems_text, runs_text, table_text
from launcher.rundir.find import find_run, find_runs
from launcher.rundir.folder import RunDir
from launcher.supervise.holder import holder_of
from launcher.supervise.queue import last_state

MOST_LISTED = 20


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    root = runs_root(args)
    folder = find_run(args.run, root)
    listed = [one for one in map(_readable, find_runs(root)[-MOST_LISTED:]) if one] if args.run is None else []
    holder = holder_of(folder)
    summary = summarize(folder, alive=holder is not None)
    job = holder.job if holder else _last_job(folder, summary)
    if args.json:
        pid = holder.controller.pid if holder and holder.controller else None
        queue = asdict(job) if job else None
        show_json({**summary.as_dict(), "controller_pid": pid, "queue": queue, "runs": [one.path for one in listed]})
        return EXIT_DONE
    now = holder.text() if holder else job.text() if job else ""
    parts = [runs_text(listed)] if len(listed) > 1 else []
    parts += ["\n".join([head_text(summary), *([now] if now else [])]), table_text(summary)]
    parts += [problems_text(summary)] if summary.problems else []
    show("\n\n".join(parts))
    return EXIT_DONE


def _last_job(folder: RunDir, summary: RunSummary) -> QueueState | None:
    """Of a run that nobody has and that said no last word: how its job ended. None where it had none."""
    if summary.state not in ("waiting", "interrupted"):
        return None
    try:
        return last_state(folder)
    except LauncherError as error:
        say(error.text())
        return None


def _summary(folder: RunDir) -> RunSummary:
    """Who has it is asked only where that makes a difference: a queue is a program away."""
    summary = summarize(folder, alive=False)
    return summarize(folder, alive=True) if summary.state == "interrupted" and holder_of(folder) else summary


def _readable(folder: RunDir) -> RunSummary | None:
    """A folder of another version does not hide the others."""
    try:
        return _summary(folder)
    except LauncherError:
        return None
