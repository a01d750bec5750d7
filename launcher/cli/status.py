"""`launcher status [RUN]`: what a run is doing, from its files. Without RUN all runs, then the newest in full."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from launcher.backends.slurm import QueueState
from launcher.cli.common import add_json, add_run, runs_root, show, show_json
from launcher.errors import EXIT_DONE, LauncherError
from launcher.report.summary import RunSummary, summarize
from launcher.report.table import head_text, problems_text, runs_text, table_text
from launcher.rundir.find import find_run, find_runs
from launcher.rundir.folder import RunDir
from launcher.supervise.lock import find_owner
from launcher.supervise.queue import job_state

MOST_LISTED = 20


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    root = runs_root(args)
    folder = find_run(args.run, root)
    listed = [one for one in map(_readable, find_runs(root)[-MOST_LISTED:]) if one] if args.run is None else []
    job, asked = _job(folder)
    owner = None if job is not None and job.over else find_owner(folder)
    summary = summarize(folder, alive=owner is not None)
    if args.json:
        pid = owner.pid if owner else None
        told = {"controller_pid": pid, "queue": asked, "runs": [one.path for one in listed]}
        show_json({**summary.as_dict(), **told})
        return EXIT_DONE
    parts = [runs_text(listed)] if len(listed) > 1 else []
    head = [head_text(summary), *([f"process {owner.pid} on {owner.host} controls it"] if owner else [])]
    parts += ["\n".join([*head, *([asked] if asked else [])]), table_text(summary)]
    parts += [problems_text(summary)] if summary.problems else []
    show("\n\n".join(parts))
    return EXIT_DONE


def _job(folder: RunDir) -> tuple[QueueState | None, str | None]:
    """The run's job in a queue, and what the queue says of it, or why it says nothing."""
    try:
        job = job_state(folder)
    except LauncherError as error:
        return None, error.problems[0].text().splitlines()[0]
    return job, job.text() if job else None


def _summary(folder: RunDir) -> RunSummary:
    return summarize(folder, alive=find_owner(folder) is not None)


def _readable(folder: RunDir) -> RunSummary | None:
    """A folder of another version does not hide the others."""
    try:
        return _summary(folder)
    except LauncherError:
        return None
