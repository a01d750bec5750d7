"""What the code says -> docs/{errors,cli,parallelism,planner}.md. `python -m launcher.cli.docs [ROOT]` writes them."""

from __future__ import annotations

import argparse
import sys
from itertools import takewhile
from pathlib import Path

from launcher.cli.docs_parallelism import parallelism_text
from launcher.cli.docs_planner import planner_text
from launcher.cli.main import COMMANDS, make_parser
from launcher.codes import CATALOGUE
from launcher.errors import EXIT_CODES
from launcher.rundir.folder import write_atomic

_GOLDENS, _PLANS = "tests/golden/errors", "tests/golden/plan"
_BANDS = {
    "1": "the job file and the command line",
    "2": "the plan",
    "3": "DeepSpeed configs",
    "4": "the machine or cluster",
    "5": "the run",
    "9": "ours",
}


def errors_text(root: Path) -> str:
    """docs/errors.md: one section a band, one row a code, and the texts that tests compare with what the commands print."""
    lines = ["# Errors", "", "Built by `python -m launcher.cli.docs` from `launcher/codes/` and the texts of"]
    lines += [f"`{_GOLDENS}`. Codes are stable, wording is not."]
    for band, title in _BANDS.items():
        codes = sorted(code for code in CATALOGUE if code[1] == band)
        lines += ["", f"## E{band}xx: {title} (exit code {EXIT_CODES[band]})", ""]
        lines += ["| code | | when | what to do |", "|---|---|---|---|"]
        for code in codes:
            info = CATALOGUE[code]
            lines.append(f"| {code} | {info.title} | {_cell(info.when)} | {_cell(info.remedy)} |")
        shown = [example for code in codes if (example := _example(root, code))]
        if shown:
            lines += ["", "As the commands print them:", "", "```text", "\n\n".join(shown), "```"]
    return "\n".join(lines) + "\n"


def _example(root: Path, code: str) -> str:
    """A text that shows a code, its own golden before others: a problem with its hint, or a plan not taken. Empty: none."""
    errors = sorted((root / _GOLDENS).glob("*.txt"), key=lambda path: (not path.name.startswith(code), path.name))
    for path in (*errors, *sorted((root / _PLANS).glob("*.txt"))):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if f"[{code}]" in line:
                behind = takewhile(lambda line: line.startswith("  hint:"), lines[number + 1 :])
                return "\n".join([line.strip(), *behind])
    return ""


def cli_text() -> str:
    """docs/cli.md: the help of the program and of each command, as they print it on 100 columns."""
    parser = make_parser(COMMANDS)
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = ["# Commands", "", "Built by `python -m launcher.cli.docs` from the parser.", "", "```", _help(parser), "```"]
    for name in COMMANDS:
        lines += ["", f"## launcher {name}", "", "```", _help(commands.choices[name]), "```"]
    return "\n".join(lines) + "\n"


def _help(parser: argparse.ArgumentParser) -> str:
    """One form for every Python from 3.11 on: they wrap usage lines differently, so these are made one line."""
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    text = parser.format_help().strip()
    usage, _, rest = text.partition("\n\n")
    return " ".join(usage.split()) + f"\n\n{rest}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def doc_texts(root: Path) -> dict[str, str]:
    """Path below the repository, which is at `root`, -> text."""
    return {
        "docs/errors.md": errors_text(root),
        "docs/cli.md": cli_text(),
        "docs/parallelism.md": parallelism_text(root),
        "docs/planner.md": planner_text(root),
    }


def main(root: Path) -> None:
    for name, text in doc_texts(root).items():
        write_atomic(root / name, text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
