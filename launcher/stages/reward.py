"""Reward model: one score per sequence, -log sigmoid(score(chosen) - score(rejected)), trained on preference pairs.

The head `score` is new and has one output; a small pull keeps scores near 0 (stage.center). On held-out pairs the stage tells
accuracy and margin, overall and per group. The gate is the supervisor's: it stops the chain, what was trained is kept.
"""

from __future__ import annotations

from functools import partial

from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import Reward
from launcher.train.assemble import assemble
from launcher.train.batches import scored_pairs
from launcher.train.course import Course, Figures, run_course
from launcher.train.engines import Scoring
from launcher.train.evaluate import group_accuracy, pair_figures, score_rows
from launcher.train.handing_over import hand_over
from launcher.train.objectives import REWARD, Objective, bradley_terry
from launcher.train.task import Task, begin


def run(run: RunDir, job: JobSpec, stage: Reward, order: StageOrder) -> None:
    """Train the scorer, measure it, hand it on."""
    objective = Objective(
        names=REWARD, collate=scored_pairs, losses=lambda scores, batch: bradley_terry(scores[0], center=stage.center)
    )
    quantize = job.model.quantize is not None
    task = begin(run, job, stage, order, objective, adapter=job.model.adapter, quantize=quantize)
    assembled = assemble(task)
    course = Course(task=task, engine=assembled.engine, evaluate=partial(_figures, task))
    run_course(course)
    hand_over(course, assembled.trained)


def _figures(task: Task, engine: Scoring) -> Figures:
    rows = task.rows.held_out
    [scores] = score_rows(engine, rows, task.collate, batch=task.held_out_micro)
    margins = scores[0] - scores[1]
    return pair_figures(margins), group_accuracy(margins, rows["group"])
