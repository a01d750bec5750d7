"""`launcher COMMAND …`: finds the command's module, runs it, and turns every failure into a text and an exit code.

A command is a module of this folder with `add_arguments(parser)` and `run(args) -> int`. Only the module of the chosen
command is imported, so that `launcher status` does not pay for `launcher plan`.
"""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import os
import sys
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import NoReturn, Protocol, cast

from launcher import __version__
from launcher.cli.common import STDOUT, say, show_json, write_out
from launcher.errors import EXIT_BUG, EXIT_STOPPED, LauncherError, Problem
from launcher.spec.wording import nearest

# name -> (module in launcher.cli, help)
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "write a commented job file and its JSON schema"),
    "validate": ("validate", "check a job file: every error at once"),
    "plan": ("plan", "what will run and why: ZeRO stage, memory, batch"),
    "calibrate": ("calibrate", "measure this machine; later plans take what was measured"),
    "doctor": ("doctor", "ask every host of a job at once what stands against a run, and let the ranks meet"),
    "render": ("render", "write every file and command that run would use"),
    "run": ("run", "run the job's stages under supervision"),
    "status": ("status", "what a run is doing"),
    "logs": ("logs", "what the ranks of a run print"),
    "stop": ("stop", "end a run; it can be resumed"),
    "resume": ("resume", "go on with a run: finished stages are kept"),
    "report": ("report", "what each stage reached"),
    "generate": ("generate", "let the trained model answer"),
    "export": ("export", "write the trained model as a plain Hugging Face folder"),
    "lint": ("lint", "find what DeepSpeed silently ignores in a config of yours"),
    "node": ("node", "one node's part in a run that a scheduler starts on all of them"),
    "schema": ("schema", "print the JSON schema of the job file"),
}


class Command(Protocol):
    """What every command module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """argparse, with usage errors in our words."""

    def error(self, message: str) -> NoReturn:
        hint = f"see `{self.prog} --help`"
        raise LauncherError(Problem(code="E111", where="", what=f"{self.prog}: {message}", hint=hint))


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code. Never raises for a user's mistake, never exits 0 on a failure."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot print a word is no reason to stop
    try:
        return _run(words)
    except LauncherError as error:
        _tell(error, as_json="--json" in words)
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped")
        return EXIT_STOPPED
    except OSError as error:
        problem = _refused(error)
        _tell(LauncherError(problem), as_json="--json" in words)
        return LauncherError(problem).exit_code
    except Exception:
        _tell(LauncherError(_bug()), as_json="--json" in words)
        return EXIT_BUG


def make_parser(names: Collection[str]) -> Parser:
    """The parser of the commands in `names`, whose modules are imported; without names it only lists all commands."""
    parser = Parser(prog="launcher", description="One job file trains a language model through all its stages on DeepSpeed.")
    parser.add_argument("--version", action="version", version=f"launcher {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in names or COMMANDS:
        module, text = COMMANDS[name]
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        if name in names:
            _command(module).add_arguments(sub)
    return parser


def _run(words: list[str]) -> int:
    _skip_plugins()
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        raise LauncherError(_unknown_command(name))
    try:
        args = make_parser([name] if name else []).parse_args(words)
    except SystemExit as end:  # --help and --version have printed and are done
        write_out("")
        return int(end.code or 0)
    return _command(COMMANDS[args.command][0]).run(args)


def _skip_plugins() -> None:
    """Spare every start Pydantic's search for plugins in all installed packages (20 ms with its imports); we use none."""
    loader = ModuleType("pydantic.plugin._loader")
    setattr(loader, "get_plugins", tuple)  # noqa: B010 - a module has no such attribute for the type checker
    sys.modules.setdefault(loader.__name__, loader)


def _command(module: str) -> Command:
    """The command's module. Nothing that is loaded becomes garbage, so the collector rests meanwhile: 15 ms."""
    gc.disable()
    try:
        return cast(Command, importlib.import_module(f"launcher.cli.{module}"))
    finally:
        gc.freeze()
        gc.enable()


def _unknown_command(name: str) -> Problem:
    meant = nearest(name, COMMANDS)
    hint = f"did you mean {meant}?" if meant else f"the commands are {', '.join(COMMANDS)}"
    return Problem(code="E111", where="", what=f"launcher: there is no command {name}", hint=hint)


def _tell(error: LauncherError, *, as_json: bool) -> None:
    if not as_json or any(problem.where == STDOUT for problem in error.problems):
        say(error.text())
        return
    try:
        show_json({"errors": [problem.as_dict() for problem in error.problems]})
    except LauncherError:
        say(error.text())


# What a system says of its files. Anything else that it says is not expected, and so a bug.
_ABOUT_FILES = frozenset(
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENAMETOOLONG", "ELOOP", "ENOTDIR", "EIO", "ESTALE")
)


def _refused(error: OSError) -> Problem:
    """A file that the system does not give is not our fault, wherever we meet it."""
    if error.errno not in _ABOUT_FILES:
        return _bug()
    what = f"cannot be used: {(error.strerror or 'unknown reason').lower()}"
    hint = "mend its permissions or the disk, or name another place"
    return Problem(code="E414", where=str(error.filename or "a file"), what=what, hint=hint)


def _bug() -> Problem:
    """What went wrong in one line, and a file with the traceback."""
    import tempfile
    import traceback

    handle, path = tempfile.mkstemp(prefix="launcher-bug-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"launcher {__version__}, Python {sys.version}\n{traceback.format_exc()}")
    reason = traceback.format_exception_only(*sys.exc_info()[:2])[-1].strip().splitlines()[0]
    return Problem(
        code="E901", where="", what=f"a bug in launcher: {reason}", hint=f"the traceback is in {path}; please report it"
    )


if __name__ == "__main__":
    sys.exit(main())
