"""Reward model: one score per sequence, -log sigmoid(score(chosen) - score(rejected)), trained on preference pairs.

The head `score` is new and has one output; a small pull keeps scores near 0 (stage.center). On held-out pairs the stage tells
accuracy and margin, overall and per group. The gate is the supervisor's: it stops the chain, what was trained is kept.
"""

from __future__ import annotations

import time
from functools import partial

from datasets import Dataset
from transformers import set_seed

from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import Reward
from launcher.train.artifacts import hand_on
from launcher.train.assemble import Task, assemble
from launcher.train.batches import scored_pairs
from launcher.train.course import Course, Figures, run_course, tell
from launcher.train.engines import Scoring
from launcher.train.evaluate import group_accuracy, pair_figures, score_rows
from launcher.train.mesh import make_mesh
from launcher.train.models import load_tokenizer
from launcher.train.objectives import REWARD, Objective, bradley_terry
from launcher.train.ranks import meet
from launcher.train.rows import load_rows
from launcher.train.shipped import score_shipped


def run(run: RunDir, job: JobSpec, stage: Reward, order: StageOrder) -> None:
    """Train the scorer, measure it, hand it on."""
    started = time.time()
    ranks = meet(order)
    mesh = make_mesh(order, ranks)
    rows = load_rows(run, order, stage)
    tokenizer = load_tokenizer(run, order)
    set_seed(job.seed)
    objective = Objective(
        names=REWARD, collate=scored_pairs, losses=lambda scores, batch: bradley_terry(scores[0], center=stage.center)
    )
    task = Task(
        run=run,
        job=job,
        stage=stage,
        order=order,
        mesh=mesh,
        tokenizer=tokenizer,
        objective=objective,
        adapter=job.model.adapter,
        quantize=job.model.quantize is not None,
    )
    assembled = assemble(task)
    course = Course(
        run=run,
        job=job,
        stage=stage,
        order=order,
        ranks=ranks,
        rows=rows,
        engine=assembled.engine,
        objective=objective,
        evaluate=partial(_figures, rows=rows.held_out, pad=tokenizer.pad_token_id, batch=2 * order.micro_batch),
        pad=tokenizer.pad_token_id,
        started=started,
    )
    run_course(course)
    artifact = hand_on(run, order, ranks, assembled.trained)
    if task.quantize:
        score_shipped(course, task, artifact)
    tell(course)


def _figures(engine: Scoring, *, rows: Dataset, pad: int, batch: int) -> Figures:
    [scores] = score_rows(engine, rows, partial(scored_pairs, pad=pad, multiple=engine.mesh.sp), batch=batch)
    margins = scores[0] - scores[1]
    return pair_figures(margins), group_accuracy(margins, rows["group"])
