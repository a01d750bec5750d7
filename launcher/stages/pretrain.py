"""Pretraining: next-token loss over packed text.

prepare left blocks of exactly max_tokens; documents are joined by end tokens and see each other inside a block, as usual for
pretraining. One rank or many: `python -m launcher.stages train RUN STAGE` under the deepspeed command.
"""

from __future__ import annotations

from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import Pretrain
from launcher.train.language import train_language_model


def run(run: RunDir, job: JobSpec, stage: Pretrain, order: StageOrder) -> None:
    """Train all weights on the blocks; stages/<stage>/artifact is a language model."""
    train_language_model(run, job, stage, order, packed=False, adapter=None, quantize=False)
