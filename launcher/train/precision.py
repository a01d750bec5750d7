"""What a precision needs while it trains: the loss scale of fp16, told and watched, and TF32 said out loud. DO, on each rank.

The scale itself belongs to DeepSpeed's optimizer and travels with the checkpoint (train/states.py). It only falls:
docs/decisions/004-fp16-scale-never-grows.md.
"""

from __future__ import annotations

from typing import Any

import torch

from launcher.errors import LauncherError, Problem


class LossScale:
    """The dynamic loss scale of an engine. In other precisions there is none: no figures, and nothing is ever wrong."""

    def __init__(self, engine: Any, *, skipped: int = 0):
        self.engine, self.skipped_before = engine, skipped
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        self.scaler = scaler if getattr(scaler, "dynamic", False) else None

    @property
    def skipped(self) -> int:
        """Steps of the whole stage that changed no weight because a gradient was not finite."""
        return self.skipped_before + int(self.engine.skipped_steps)

    def figures(self) -> dict[str, float]:
        """For metrics.jsonl, behind each step."""
        if self.scaler is None:
            return {}
        return {"loss_scale": float(self.scaler.cur_scale), "skipped_steps": float(self.skipped)}

    def check(self, where: str) -> None:
        """E569 behind a step that was skipped and took the scale to its minimum.

        At the next one DeepSpeed 0.19.8 raises a bare Exception (runtime/fp16/loss_scaler.py:258). All ranks share the flag.
        """
        if self.scaler is None or not self.engine.optimizer.overflow or self.scaler.cur_scale > self.scaler.min_scale:
            return
        raise LauncherError(
            Problem(
                code="E569",
                where=where,
                what=f"the loss scale has fallen to its minimum {self.scaler.min_scale:g}, {self.skipped} steps were skipped: "
                "gradients do not fit into fp16 (65504) at any scale",
                hint="use precision: bf16, or fp32 where the GPU has none; else lower lr, raise warmup or give clip a value",
            )
        )


def allow_tf32(allowed: bool) -> None:
    """Products of fp32 matrices in TF32 (10 bits after the point) or in full fp32: never what the libraries happen to set."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed  # convolutions; on unless somebody says no
