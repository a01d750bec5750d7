"""What pretraining and SFT share: token loss on rows that prepare has tokenised and labelled."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from datasets import Dataset

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.model import Lora
from launcher.spec.stages import Pretrain, Sft
from launcher.train.assemble import assemble
from launcher.train.batches import language_batch, packed_batch
from launcher.train.course import Course, Figures, run_course
from launcher.train.engines import Scoring
from launcher.train.evaluate import score_rows, token_figures
from launcher.train.handing_over import hand_over
from launcher.train.models import dtype_of
from launcher.train.objectives import LANGUAGE, Objective, language_losses
from launcher.train.rows import unpack
from launcher.train.task import Task, begin
from launcher.train.tokenise import NO_LOSS

# A row behind another one in a pack must score as it does alone; a leak moves log-probabilities by nats.
PACK_TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}


def train_language_model(
    run: RunDir,
    job: JobSpec,
    stage: Pretrain | Sft,
    order: StageOrder,
    *,
    packed: bool,
    adapter: Lora | None,
    quantize: bool,
) -> None:
    """The story of both stages: begin, engine, train, hand over."""
    objective = Objective(names=LANGUAGE, collate=packed_batch if packed else language_batch, losses=language_losses)
    task = begin(run, job, stage, order, objective, adapter=adapter, quantize=quantize)
    assembled = assemble(task)
    course = Course(task=task, engine=assembled.engine, evaluate=partial(_figures, task, unpack(task.rows.held_out)))
    if packed:
        course.check = lambda: refuse_leaking_packs(course)
    run_course(course)
    hand_over(course, assembled.trained)


def _figures(task: Task, rows: Dataset, engine: Scoring) -> Figures:
    collate = partial(language_batch, pad=task.pad, multiple=task.mesh.sp)
    nll, hits = score_rows(engine, rows, collate, batch=task.held_out_micro)
    num_tokens = sum(label != NO_LOSS for labels in rows["labels"] for label in labels[1:])
    return token_figures(nll, hits, num_tokens=num_tokens), {}


def refuse_leaking_packs(course: Course) -> None:
    """Score two rows in one pack and the second alone, with this model and kernel; E559 where it differs. Collective."""
    rows = unpack(course.task.rows.held_out)
    if len(rows) < 2:
        return
    first, second = ({"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in (rows[0], rows[1]))
    packed = {name: [*first[name], *second[name]] for name in first} | {
        "labels": [NO_LOSS] * len(first["labels"]) + [NO_LOSS, *second["labels"][1:]],
        "seq_lengths": [len(first["input_ids"]), len(second["input_ids"])],
    }
    one = Dataset.from_list([packed] * course.task.order.dp), Dataset.from_list([second] * course.task.order.dp)
    behind, alone = (
        score_rows(course.engine, data, partial(collate, pad=course.task.pad, multiple=1), batch=1)[0][0, 0]
        for data, collate in zip(one, (packed_batch, language_batch), strict=True)
    )
    difference = float(np.abs(behind - alone)) / max(1, len(second["labels"]) - 1)
    if not difference <= PACK_TOLERANCE_NATS[dtype_of(course.task.order)]:
        raise LauncherError(
            Problem(
                code="E559",
                where=f"stage {course.task.order.stage}",
                what=f"a row scores {difference:.2g} nats a token differently behind another row than alone",
                hint="set packing: false, or model.attention: sdpa",
            )
        )
