"""Direct preference optimisation against the model that the stage starts from.

The reference is that model, frozen: its log-probabilities of all answers are worked out once, before the first step, and kept
in the stage's folder, so there is no second model in memory. Both answers' log-probabilities usually fall, the rejected one's
further: both are printed. One rank or many, as in pretrain.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import Dpo
from launcher.train.assemble import assemble
from launcher.train.batches import answered_pairs
from launcher.train.course import Course, Figures, run_course
from launcher.train.engines import Scoring
from launcher.train.evaluate import group_accuracy, pair_figures, score_rows
from launcher.train.handing_over import hand_over
from launcher.train.objectives import PREFERENCE, Objective, preference
from launcher.train.reference import with_reference
from launcher.train.task import Task, begin


def run(run: RunDir, job: JobSpec, stage: Dpo, order: StageOrder) -> None:
    """Train the policy, measure preferences before and after, hand it on."""
    objective = Objective(
        names=PREFERENCE,
        collate=answered_pairs,
        losses=lambda scores, batch: preference(scores[0], batch.reference_S, beta=stage.beta),
    )
    quantize = job.model.quantize is not None
    task = begin(run, job, stage, order, objective, adapter=job.model.adapter, quantize=quantize)
    assembled = assemble(task)
    task = with_reference(task, assembled.engine)
    course = Course(task=task, engine=assembled.engine, evaluate=partial(_figures, task, stage.beta))
    run_course(course)
    hand_over(course, assembled.trained)


def _figures(task: Task, beta: float, engine: Scoring) -> Figures:
    rows = task.rows.held_out
    nll, _ = score_rows(engine, rows, task.collate, batch=task.held_out_micro)
    chosen, rejected = -nll
    reference_chosen, reference_rejected = (np.array(rows[f"reference_{side}"]) for side in ("chosen", "rejected"))
    margins = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    figures = pair_figures(margins)
    figures |= {
        "loss": float(np.logaddexp(0, -margins).mean()),
        "chosen_logp": float(chosen.mean()),
        "rejected_logp": float(rejected.mean()),
    }
    return figures, group_accuracy(margins, rows["group"])
