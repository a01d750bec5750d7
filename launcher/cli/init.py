"""`launcher init [FILE]`: a commented job file to start from, and the JSON schema for editors beside it."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from launcher.cli.common import add_json, on_terminal, say, show, show_json
from launcher.cli.schema import schema_text
from launcher.cli.templates import HEADER, TEMPLATES
from launcher.errors import EXIT_DONE, LauncherError, Problem
from launcher.rundir.folder import write_atomic
from launcher.spec.load import load_job_text

SCHEMA_NAME = "job.schema.json"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, default=Path("job.yaml"), help="default: job.yaml")
    parser.add_argument(
        "--template", choices=sorted(TEMPLATES), help="tiny: all stages, no download; sft; full: all stages, 7B"
    )
    parser.add_argument("--name", help="the job's name (default: that of the template)")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    add_json(parser)


def run(args: Namespace) -> int:
    template = args.template or _asked("template", sorted(TEMPLATES), "tiny")
    name = args.name or _asked("name", [], template)
    files = {args.file: _job_text(template, name), args.file.parent / SCHEMA_NAME: schema_text()}
    _check_free(files, force=args.force)
    for path, text in files.items():
        _write(path, text)
    if args.json:
        show_json({"schema": 1, "files": [str(path) for path in files]})
    else:
        show("\n".join(str(path) for path in files))
    say(f"next: launcher validate {args.file}")
    return EXIT_DONE


def _asked(question: str, choices: list[str], default: str) -> str:
    """The answer of the person at the terminal; the default where there is none."""
    if not on_terminal():
        return default
    listed = f" ({', '.join(choices)})" if choices else ""
    say(f"{question}{listed} [{default}]:")
    try:
        answer = input().strip() or default
    except EOFError:  # Ctrl-D
        return default
    if choices and answer not in choices:
        what = f"--template: {answer} is not one of {', '.join(choices)}"
        raise LauncherError(Problem(code="E111", where="", what=what, hint=f"use {default}"))
    return answer


def _job_text(template: str, name: str) -> str:
    """The template under its name. LauncherError where the name cannot be one."""
    text = HEADER + re.sub(r"(?m)^name: .*$", lambda _: f"name: {name}", TEMPLATES[template], count=1)
    try:
        load_job_text(_without_paths(text), file_name="--name", folder=Path())
    except LauncherError as error:
        raise LauncherError(replace(problem, where="--name") for problem in error.problems) from None
    return text


def _without_paths(text: str) -> str:
    """The job with hub ids for its local data, which need not be there yet."""
    return re.sub(r"source: \./\S+?([,}\s])", r"source: owner/data\1", text)


def _check_free(files: dict[Path, str], *, force: bool) -> None:
    there = [path for path, text in files.items() if path.exists() and not (path.name == SCHEMA_NAME and _same(path, text))]
    if there and not force:
        hint = "name another FILE, or say --force"
        raise LauncherError(Problem(code="E119", where=str(path), what="is there already", hint=hint) for path in there)


def _same(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def _write(path: Path, text: str) -> None:
    try:
        write_atomic(path, text)
    except OSError as error:
        what = f"cannot be written: {(error.strerror or 'unknown reason').lower()}"
        raise LauncherError(Problem(code="E101", where=str(path), what=what, hint="choose another FILE")) from None
