"""What the commands share: their common arguments, and where their output goes. stdout is data, stderr is talk."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import printable


def add_job(parser: ArgumentParser) -> None:
    """JOB and --set."""
    parser.add_argument("job", metavar="JOB", type=Path, help="job file")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="change one field, stages by their name: --set stages.sft.lr=1e-5 (repeatable)",
    )


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def add_runs(parser: ArgumentParser) -> None:
    parser.add_argument("--runs", metavar="DIR", type=_folder, help="folder of all runs (default: LAUNCHER_RUNS, else ./runs)")


def _folder(text: str) -> Path:
    if not text:
        raise ArgumentTypeError("an empty name is no folder; leave --runs out for the usual one")
    return Path(text)


def add_run(parser: ArgumentParser) -> None:
    """RUN and --runs."""
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="run folder, run id, or job name (its newest run); default: the newest run of all"
    )
    add_runs(parser)


def runs_root(args: Namespace) -> Path:
    """The folder of all runs: --runs, else LAUNCHER_RUNS, else ./runs."""
    return args.runs or Path(os.environ.get("LAUNCHER_RUNS") or "runs")


def show(text: str) -> None:
    """Data: one text on stdout, with terminal escapes made harmless."""
    print(printable(text), flush=True)


def show_json(value: Mapping[str, object]) -> None:
    """Data: one object on stdout. JSON escapes control characters itself; the rest is plain ASCII."""
    print(json.dumps(value, indent=1), flush=True)


def say(text: str) -> None:
    """Talk: one text on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Whether a person can answer: nothing asks otherwise."""
    return sys.stdin.isatty() and sys.stderr.isatty()
