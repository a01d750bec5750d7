"""Supervised fine-tuning: loss on the answers (or all tokens), as prepare has labelled them.

Packed rows are trained without padding, and the stage first proves that no row sees another. With model.adapter only the
adapter is trained, on a 4-bit base with model.quantize. One rank or many, as in pretrain.
"""

from __future__ import annotations

from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import Sft
from launcher.train.language import train_language_model


def run(run: RunDir, job: JobSpec, stage: Sft, order: StageOrder) -> None:
    """Train on answers; stages/<stage>/artifact is a language model, with an adapter also artifact/adapter."""
    train_language_model(
        run,
        job,
        stage,
        order,
        packed=stage.packing,
        adapter=job.model.adapter,
        quantize=job.model.quantize is not None,
    )
