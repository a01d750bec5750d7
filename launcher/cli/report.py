"""`launcher report RUN`: what each stage reached, as text on stdout, and as report.md and report.json in the run folder."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from launcher.cli.common import add_json, add_run, runs_root, say, show, show_json
from launcher.errors import EXIT_DONE
from launcher.report.markdown import markdown_text
from launcher.report.summary import RunSummary, summarize
from launcher.report.table import report_text
from launcher.rundir.find import find_run
from launcher.rundir.folder import RunDir, write_atomic, write_json
from launcher.supervise.holder import holder_of


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    folder = find_run(args.run, runs_root(args))
    summary = summarize(folder, alive=holder_of(folder) is not None)
    write_report(folder, summary)
    if args.json:
        show_json(summary.as_dict())
    else:
        show(report_text(summary))
    return EXIT_DONE


def write_report(folder: RunDir, summary: RunSummary) -> None:
    """report.md and report.json. A folder that cannot be written is said, not fatal: the report is on stdout as well."""
    try:
        write_atomic(folder.path / "report.md", markdown_text(summary))
        write_json(folder.path / "report.json", summary.as_dict())
    except OSError as error:
        say(f"report.md and report.json cannot be written: {error.strerror}")
