"""RunSummary -> report.md. Render, pure."""

from __future__ import annotations

from datetime import UTC, datetime

from launcher.report.rows import HEAD, rows, sentences
from launcher.report.summary import RunSummary, StageSummary

_SPECIAL = str.maketrans({char: f"\\{char}" for char in "\\`*_{}[]<>()#+!|~"})


def markdown_text(summary: RunSummary) -> str:
    lines = [f"# {_plain(summary.job)}, run {_plain(summary.run_id)}", "", f"State: {summary.state}.{_times(summary)}", ""]
    lines += [_row(HEAD), _row(tuple("---" for _ in HEAD))]
    lines += [_row(tuple(_plain(cell) for cell in row.cells)) for row in rows(summary)]
    lines += ["", *(f"- {_plain(text)}" for text in sentences(summary))]
    for stage in summary.stages:
        lines += _samples(stage)
    for problem in summary.problems:
        lines += ["", f"**{problem.get('code', '')}** {_plain(problem.get('where', ''))}: {_plain(problem.get('what', ''))}"]
        lines += [f"Hint: {_plain(problem['hint'])}"] if problem.get("hint") else []
    return "\n".join(lines) + "\n"


def _samples(stage: StageSummary) -> list[str]:
    """What the model answered before and after, where the stage drew answers."""
    if not stage.samples:
        return []
    head = ("prompt", "before", "after")
    table = [tuple(_plain(sample.get(name, "")) for name in head) for sample in stage.samples]
    return ["", f"Answers of {_plain(stage.name)}:", "", _row(head), _row(tuple("---" for _ in head)), *map(_row, table)]


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Text that markdown shows as it is: names and messages may come from files of others."""
    return " ".join(text.split()).translate(_SPECIAL)


def _times(summary: RunSummary) -> str:
    if summary.started is None:
        return ""
    started = datetime.fromtimestamp(summary.started, UTC)
    return f" Started {started:%Y-%m-%d %H:%M:%S} UTC."
