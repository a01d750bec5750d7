"""RunSummary -> text for a terminal: the table at the end of `run`, and what `status` shows. Render, pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from launcher.report.rows import HEAD, rows, sentences
from launcher.report.summary import RunSummary

WIDTH = 120


def table_text(summary: RunSummary) -> str:
    """One row a stage; columns in which nothing stands are left out."""
    return aligned([HEAD, *(row.cells for row in rows(summary))])


def report_text(summary: RunSummary) -> str:
    """The table, what it means, and what went wrong."""
    parts = [head_text(summary), table_text(summary)]
    notes = [textwrap.fill(text, WIDTH, subsequent_indent="  ") for text in sentences(summary)]
    parts += ["\n".join(notes)] if notes else []
    parts += [problems_text(summary)] if summary.problems else []
    return "\n\n".join(parts)


def head_text(summary: RunSummary) -> str:
    return f"{summary.job} {summary.run_id}: {summary.state}\n{summary.path}"


def problems_text(summary: RunSummary) -> str:
    lines = []
    for problem in summary.problems:
        lines.append(f"{problem.get('where', '')} [{problem.get('code', '')}] {problem.get('what', '')}".lstrip())
        if problem.get("hint"):
            lines.append(f"  hint: {problem['hint']}")
    return "\n".join(lines)


def runs_text(summaries: Sequence[RunSummary]) -> str:
    """One row a run."""
    head = ("run", "job", "state", "at")
    return aligned([head, *((one.run_id, one.job, one.state, _at(one)) for one in summaries)])


def _at(summary: RunSummary) -> str:
    """Where the run is: its first stage that is not finished, and how many are."""
    finished = [stage for stage in summary.stages if stage.state in ("done", "kept")]
    rest = [stage.name for stage in summary.stages if stage.state not in ("done", "kept")]
    return f"{len(finished)} of {len(summary.stages)} stages done" + (f", next {rest[0]}" if rest else "")


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Cells in columns two blanks apart. The first row is the head; columns that are empty below it are dropped."""
    used = [number for number in range(len(table[0])) if any(row[number] for row in table[1:])]
    widths = [max(len(row[number]) for row in table) for number in used]
    lines = ["  ".join(row[number].ljust(width) for number, width in zip(used, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
