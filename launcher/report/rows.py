"""RunSummary -> the cells of its tables and the sentences under them, the same for text and markdown. DERIVE, pure."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.report.summary import RunSummary, StageSummary
from launcher.units import bytes_text, seconds_text

# kind -> the figure that the row is about, and what it is counted in
MAIN_FIGURE = {
    "pretrain": ("loss", "nats/token"),
    "sft": ("loss", "nats/token"),
    "reward": ("accuracy", ""),
    "dpo": ("accuracy", ""),
    "ppo": ("score", ""),
}
ALSO = {"reward": ("margin",), "dpo": ("margin",), "ppo": ("kl", "length")}
UNITS = {"kl": " nats", "length": " tokens"}
FROM_ZERO = {"kl"}  # 0 before training by definition
HARDLY = 0.65  # accuracy of a group below which the reward model can hardly tell its pairs apart: 0.5 is chance

HEAD = ("stage", "state", "steps", "time", "held-out", "before", "after", "also", "memory")


@dataclass(frozen=True, slots=True)
class Row:
    cells: tuple[str, ...]


def rows(summary: RunSummary) -> list[Row]:
    """One a stage, cells as in HEAD."""
    return [Row(_cells(stage)) for stage in summary.stages]


def _cells(stage: StageSummary) -> tuple[str, ...]:
    name, unit = MAIN_FIGURE.get(stage.kind, ("", ""))
    held_out = f"{name} ({unit})" if unit else name
    return (
        stage.name,
        stage.state,
        steps_text(stage),
        seconds_text(stage.seconds) if stage.seconds is not None else "",
        held_out if stage.after else "",
        figure_text(stage.before.get(name)),
        figure_text(stage.after.get(name)),
        ", ".join(_also(stage)),
        bytes_text(stage.peak_bytes) if stage.peak_bytes else "",
    )


def steps_text(stage: StageSummary) -> str:
    if stage.step is None:
        return f"{stage.steps}" if stage.steps else ""
    finished = stage.state in ("done", "kept")
    return f"{stage.step}" if finished or not stage.steps else f"{stage.step}/{stage.steps}"


def figure_text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _also(stage: StageSummary) -> list[str]:
    texts = []
    for name in ALSO.get(stage.kind, ()):
        before, after = stage.before.get(name), stage.after.get(name)
        if after is None:
            continue
        change = f"{after:.2f}" if before is None or name in FROM_ZERO else f"{before:.2f} → {after:.2f}"
        texts.append(f"{name} {change}{UNITS.get(name, '')}")
    return texts


def sentences(summary: RunSummary) -> list[str]:
    """What the figures mean and do not mean."""
    found: list[str] = []
    for stage in summary.stages:
        if stage.groups:
            found += [_groups_text(stage)]
        if stage.judge and stage.after:
            judge = stage.judge
            found.append(
                f"{stage.name}: its score is given by the model of stage {judge}, which also trained it. A higher score means"
                f" that {judge} likes the answers better, nothing more; what {judge} cannot tell apart, it cannot judge."
            )
        found += [f"{stage.name}: {note}" for note in stage.notes]
    return found


def _groups_text(stage: StageSummary) -> str:
    """`reward: tells apart off-topic 0.98; can hardly tell apart wrong-number 0.52 (0.5 is chance)`."""
    ordered = sorted(stage.groups.items(), key=lambda item: -item[1])
    well = [f"{name or 'all'} {value:.2f}" for name, value in ordered if value >= HARDLY]
    hardly = [f"{name or 'all'} {value:.2f}" for name, value in ordered if value < HARDLY]
    parts = [f"tells apart {', '.join(well)}"] if well else []
    parts += [f"can hardly tell apart {', '.join(hardly)}"] if hardly else []
    return f"{stage.name}: {'; '.join(parts)} (share of held-out pairs by group, 0.5 is chance)"
