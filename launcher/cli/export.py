"""`launcher export RUN -o DIR`: starts `python -m launcher.stages export`, which writes the folder; its exit code is ours."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from launcher.backends.shell import run_in_foreground
from launcher.cli.common import add_json, add_run, runs_root
from launcher.errors import LauncherError, Problem
from launcher.rundir.find import find_run
from launcher.rundir.handed_on import find_model


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--stage", metavar="S", help="finished stage to write (default: the last one with a language model)")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="of the weights (default: as trained)")
    add_json(parser)


def run(args: Namespace) -> int:
    folder, output = find_run(args.run, runs_root(args)), args.output.absolute()
    stage = find_model(folder, args.stage, any_kind=True).stage  # known before anything heavy is loaded
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        hint = "name a new or an empty folder; nothing is overwritten"
        raise LauncherError(Problem(code="E119", where=str(output), what="it is not an empty folder", hint=hint))
    argv = [sys.executable, "-m", "launcher.stages", "export", str(folder.path), "--stage", stage, f"--output={output}"]
    argv += [f"--dtype={args.dtype}"] if args.dtype else []
    return run_in_foreground([*argv, *(["--json"] if args.json else [])])
