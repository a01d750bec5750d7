"""Task: what a supervised stage has to work with, from the first meeting of its ranks on. DO, collective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase, set_seed

from launcher.rundir.folder import RunDir, StageDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.model import Lora
from launcher.spec.stages import StageBase
from launcher.train.batches import Batch, Row
from launcher.train.mesh import Mesh, make_mesh
from launcher.train.models import load_tokenizer
from launcher.train.objectives import Objective
from launcher.train.ranks import Ranks, meet
from launcher.train.rows import Rows, load_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One stage of one run on one rank: asked, planned, and there."""

    run: RunDir
    job: JobSpec
    stage: StageBase
    order: StageOrder
    objective: Objective
    adapter: Lora | None
    quantize: bool
    ranks: Ranks
    mesh: Mesh
    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    started: float  # time.time() at the start of the story

    @property
    def folder(self) -> StageDir:
        return self.run.stage(self.order.stage)

    @property
    def pad(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def held_out_micro(self) -> int:
        """Rows that are scored together: without gradients twice as many fit."""
        return 2 * self.order.micro_batch

    def collate(self, rows: Sequence[Row]) -> Batch:
        """A micro-batch to train on; of a length that the ranks of a sequence can share."""
        return self.objective.collate(rows, pad=self.pad, multiple=self.mesh.sp)


def begin(
    run: RunDir,
    job: JobSpec,
    stage: StageBase,
    order: StageOrder,
    objective: Objective,
    *,
    adapter: Lora | None,
    quantize: bool,
) -> Task:
    """First line of every supervised story: the ranks meet, groups, rows and tokenizer are there, the seed is set."""
    started, ranks = time.time(), meet(order)
    task = Task(
        run=run,
        job=job,
        stage=stage,
        order=order,
        objective=objective,
        adapter=adapter,
        quantize=quantize,
        ranks=ranks,
        mesh=make_mesh(order, ranks),
        rows=load_rows(run, order, stage),
        tokenizer=load_tokenizer(run, order),
        started=started,
    )
    set_seed(job.seed)
    return task
