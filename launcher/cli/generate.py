"""`launcher generate RUN`: starts `python -m launcher.stages generate`, which loads the model; its exit code is ours."""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from launcher.backends.shell import run_in_foreground
from launcher.cli.common import add_json, add_run, runs_root
from launcher.errors import LauncherError, Problem
from launcher.rundir.find import find_run
from launcher.rundir.handed_on import find_model


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--stage", metavar="S", help="finished stage to use (default: the last one with a language model)")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        default=[],
        help="repeatable; without it, one prompt a line is read from stdin",
    )
    parser.add_argument("--max-new-tokens", metavar="N", type=_tokens, default=128, help="longest answer (default: 128)")
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=_temperature,
        default=0.0,
        help="0: the best token; above: drawn (default: 0)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the draws; the same seed, the same answers")
    add_json(parser)


def run(args: Namespace) -> int:
    if not args.prompt and sys.stdin.isatty():
        hint = "give --prompt TEXT, or one prompt a line on stdin"
        raise LauncherError(Problem(code="E111", where="", what="launcher generate: there is no prompt", hint=hint))
    folder = find_run(args.run, runs_root(args))
    stage = find_model(folder, args.stage, any_kind=False).stage  # known before anything heavy is loaded
    argv = [sys.executable, "-m", "launcher.stages", "generate", str(folder.path), "--stage", stage]
    argv += [f"--prompt={prompt}" for prompt in args.prompt]
    argv += [f"--max-new-tokens={args.max_new_tokens}", f"--temperature={args.temperature}", f"--seed={args.seed}"]
    return run_in_foreground([*argv, *(["--json"] if args.json else [])])


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 131_072:
        raise ArgumentTypeError(f"{text!r} is not a number of tokens from 1 to 131072")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 10:
        raise ArgumentTypeError(f"{text!r} is not a temperature from 0 to 10")
    return value
