"""What pretraining and SFT share: token loss on rows that prepare has tokenised and labelled."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from transformers import set_seed

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.model import Lora
from launcher.spec.stages import Pretrain, Sft
from launcher.train.artifacts import hand_on
from launcher.train.assemble import Task, assemble
from launcher.train.batches import language_batch, packed_batch
from launcher.train.course import Course, Figures, run_course, tell
from launcher.train.engines import Scoring
from launcher.train.evaluate import score_rows, token_figures
from launcher.train.mesh import make_mesh
from launcher.train.models import dtype_of, load_tokenizer
from launcher.train.objectives import LANGUAGE, Objective, language_losses
from launcher.train.ranks import meet
from launcher.train.rows import load_rows, unpack
from launcher.train.shipped import score_shipped
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
    """The story of both stages: meet, data, model, engine, train, hand on, result."""
    started = time.time()
    ranks = meet(order)
    mesh = make_mesh(order, ranks)
    rows = load_rows(run, order, stage)
    tokenizer = load_tokenizer(run, order)
    set_seed(job.seed)
    objective = Objective(names=LANGUAGE, collate=packed_batch if packed else language_batch, losses=language_losses)
    task = Task(
        run=run,
        job=job,
        stage=stage,
        order=order,
        mesh=mesh,
        tokenizer=tokenizer,
        objective=objective,
        adapter=adapter,
        quantize=quantize,
    )
    assembled = assemble(task)
    pad = tokenizer.pad_token_id
    course = Course(
        run=run,
        job=job,
        stage=stage,
        order=order,
        ranks=ranks,
        rows=rows,
        engine=assembled.engine,
        objective=objective,
        evaluate=partial(_figures, rows=unpack(rows.held_out), pad=pad, batch=2 * order.micro_batch),
        pad=pad,
        started=started,
    )
    if packed:
        course.check = lambda: refuse_leaking_packs(course)
    run_course(course)
    artifact = hand_on(run, order, ranks, assembled.trained)
    if quantize:
        score_shipped(course, task, artifact)
    tell(course)


def _figures(engine: Scoring, *, rows: Dataset, pad: int, batch: int) -> Figures:
    collate = partial(language_batch, pad=pad, multiple=engine.mesh.sp)
    nll, hits = score_rows(engine, rows, collate, batch=batch)
    num_tokens = sum(label != NO_LOSS for labels in rows["labels"] for label in labels[1:])
    return token_figures(nll, hits, num_tokens=num_tokens), {}


def refuse_leaking_packs(course: Course) -> None:
    """Score two rows in one pack and the second alone, with this model and kernel; E559 where it differs. Collective."""
    rows = unpack(course.rows.held_out)
    if len(rows) < 2:
        return
    first, second = ({"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in (rows[0], rows[1]))
    packed = {name: [*first[name], *second[name]] for name in first} | {
        "labels": [NO_LOSS] * len(first["labels"]) + [NO_LOSS, *second["labels"][1:]],
        "seq_lengths": [len(first["input_ids"]), len(second["input_ids"])],
    }
    one = Dataset.from_list([packed] * course.order.dp), Dataset.from_list([second] * course.order.dp)
    behind, alone = (
        score_rows(course.engine, data, partial(collate, pad=course.pad, multiple=1), batch=1)[0][0, 0]
        for data, collate in zip(one, (packed_batch, language_batch), strict=True)
    )
    difference = float(np.abs(behind - alone)) / max(1, len(second["labels"]) - 1)
    if not difference <= PACK_TOLERANCE_NATS[dtype_of(course.order)]:
        raise LauncherError(
            Problem(
                code="E559",
                where=f"stage {course.order.stage}",
                what=f"a row scores {difference:.2g} nats a token differently behind another row than alone",
                hint="set packing: false, or model.attention: sdpa",
            )
        )
