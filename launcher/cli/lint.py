"""`launcher lint DS_CONFIG.json`: what DeepSpeed refuses or silently ignores in an existing config. Reads one file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from launcher.cli.common import add_json, show, show_json
from launcher.dsconfig.keys import NEWEST, SCHEMAS
from launcher.dsconfig.lint import is_warning, lint_config
from launcher.errors import EXIT_DONE, EXIT_USAGE, LauncherError, Problem

MAX_BYTES = 1024 * 1024


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("config", metavar="DS_CONFIG.json", type=Path, help="DeepSpeed config")
    parser.add_argument("--deepspeed", choices=sorted(SCHEMAS), default=NEWEST, help="version it is meant for")
    add_json(parser)


def run(args: Namespace) -> int:
    problems = lint_config(_read(args.config), file_name=str(args.config), version=args.deepspeed)
    errors = [problem for problem in problems if not is_warning(problem)]
    if args.json:
        found = [problem.as_dict() | {"level": "warning" if is_warning(problem) else "error"} for problem in problems]
        show_json({"schema": 1, "config": str(args.config), "deepspeed": args.deepspeed, "problems": found})
    else:
        show("\n".join([*(_text(problem) for problem in problems), _summary(args, problems, errors)]))
    return EXIT_USAGE if errors else EXIT_DONE


def _text(problem: Problem) -> str:
    return f"{'warning' if is_warning(problem) else 'error'}: {problem.text()}"


def _summary(args: Namespace, problems: list[Problem], errors: list[Problem]) -> str:
    count = f"{_count(len(errors), 'error')}, {_count(len(problems) - len(errors), 'warning')}"
    return f"{args.config}: {count} for DeepSpeed {args.deepspeed}"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        what = f"cannot be read: {(error.strerror or 'unknown reason').lower()}"
        raise LauncherError(Problem(code="E101", where=str(path), what=what, hint="check the path")) from None
    if len(data) > MAX_BYTES:
        raise LauncherError(Problem(code="E101", where=str(path), what="is larger than 1 MiB", hint="name a DeepSpeed config"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LauncherError(Problem(code="E101", where=str(path), what="is not UTF-8 text", hint="save it as UTF-8")) from None
