"""What the commands share: their common arguments, and where their output goes. stdout is data, stderr is talk."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from launcher.errors import LauncherError, Problem, printable

STDOUT = "stdout"  # where an error of the output itself is


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
    write_out(f"{printable(text)}\n")


def show_json(value: Mapping[str, object]) -> None:
    """Data: one object on stdout. JSON escapes control characters itself; the rest is plain ASCII."""
    write_out(json.dumps(value, indent=1) + "\n")


def write_out(text: str) -> bool:
    """Whether stdout still takes it. A reader that has gone away, as `head` does, changes nothing else: what is left to show is
    dropped, and the exit code is the command's own. LauncherError E414 where the text cannot be kept.
    """
    if sys.stdout is None:  # closed from the start
        return False
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
        return False
    except OSError as error:
        _drop(sys.stdout)
        what = f"cannot be written: {(error.strerror or 'unknown reason').lower()}"
        problem = Problem(code="E414", where=STDOUT, what=what, hint="send it where there is room")
        raise LauncherError(problem) from None
    return True


def say(text: str) -> None:
    """Talk: one text on stderr; a stderr that takes none is no reason to stop."""
    if sys.stderr is None:
        return
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Nothing that is written from now on, at the end of the process either, can fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def on_terminal() -> bool:
    """Whether a person can answer: nothing asks otherwise."""
    return sys.stdin.isatty() and sys.stderr.isatty()
