"""(stage, seconds of one of its steps) -> how far apart its checkpoints are, and what decided it. DERIVE, pure."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.spec.stages import Stage

CHECKPOINTS_PER_STAGE = 5
FEWEST_STEPS_BETWEEN = 25
STEPS_BETWEEN_WHERE_UNKNOWN = 500
MOST_LOST_S = 3600  # of work, when a run dies just before a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Spacing:
    steps: int  # of the stage, between two checkpoints
    why: str


def spacing_of(stage: Stage, *, step_s: float | None) -> Spacing:
    """As asked; else five over the stage, but no closer than 25 steps, and above all no more than an hour of work apart.

    `step_s`: of a step of the stage, which is an iteration in ppo; None: not known.
    """
    if stage.checkpoint_every:
        return Spacing(steps=stage.checkpoint_every, why="as asked")
    wanted = _by_number(stage)
    hour = max(1, int(MOST_LOST_S / step_s)) if step_s else wanted.steps
    if hour >= wanted.steps:
        return wanted
    return Spacing(
        steps=hour, why="an hour of work, the most that a failure may lose" if hour > 1 else "it takes over half an hour"
    )


def _by_number(stage: Stage) -> Spacing:
    if not stage.steps:
        return Spacing(steps=STEPS_BETWEEN_WHERE_UNKNOWN, why="the number of steps is known when data is prepared")
    fifth = -(-stage.steps // CHECKPOINTS_PER_STAGE)
    if fifth < FEWEST_STEPS_BETWEEN:
        return Spacing(steps=FEWEST_STEPS_BETWEEN, why=f"no closer, a fifth of {stage.steps} steps would be {fifth}")
    return Spacing(steps=fifth, why=f"a fifth of {stage.steps} steps")
