"""Learning rate of each step: transformers' schedules of the same names, but that the first step already moves. Pure."""

from __future__ import annotations

import math

from launcher.spec.stages import StageBase


def learning_rate(stage: StageBase, step: int, num_steps: int) -> float:
    """Of optimizer step `step`, counted from 0. Warm-up rises to the peak, which the last step of the warm-up uses."""
    warmup = math.ceil(stage.warmup * num_steps)
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    if stage.schedule == "constant":
        return stage.lr
    progress = (step - warmup) / max(1, num_steps - warmup)
    if stage.schedule == "linear":
        return stage.lr * (1 - progress)
    return stage.lr * 0.5 * (1 + math.cos(math.pi * progress))
