"""`launcher status [RUN]`: what a run is doing, from its files. Without RUN all runs, then the newest in full."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from launcher.cli.common import add_json, add_run, runs_root, show, show_json
from launcher.errors import EXIT_DONE, LauncherError
from launcher.report.summary import RunSummary, summarize
from launcher.report.table import head_text, problems_text, runs_text, table_text
from launcher.rundir.find import find_run, find_runs
from launcher.rundir.folder import RunDir
from launcher.supervise.lock import find_owner

MOST_LISTED = 20


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    root = runs_root(args)
    folder = find_run(args.run, root)
    listed = [one for one in map(_readable, find_runs(root)[-MOST_LISTED:]) if one] if args.run is None else []
    owner, summary = find_owner(folder), _summary(folder)
    if args.json:
        pid = owner.pid if owner else None
        show_json({**summary.as_dict(), "controller_pid": pid, "runs": [one.path for one in listed]})
        return EXIT_DONE
    parts = [runs_text(listed)] if len(listed) > 1 else []
    parts += [head_text(summary) + (f"\nprocess {owner.pid} on {owner.host} controls it" if owner else ""), table_text(summary)]
    parts += [problems_text(summary)] if summary.problems else []
    show("\n\n".join(parts))
    return EXIT_DONE


def _summary(folder: RunDir) -> RunSummary:
    return summarize(folder, alive=find_owner(folder) is not None)


def _readable(folder: RunDir) -> RunSummary | None:
    """A folder of another version does not hide the others."""
    try:
        return _summary(folder)
    except LauncherError:
        return None
