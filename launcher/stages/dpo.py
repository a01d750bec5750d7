"""Direct preference optimisation against the model that the stage starts from.

The reference is that model, frozen: its log-probabilities of all answers are worked out once, before the first step, and kept
in the stage's folder, so there is no second model in memory. Both answers' log-probabilities usually fall, the rejected one's
further: both are printed. One rank or many, as in pretrain.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from datasets import Dataset
from transformers import set_seed

from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import Dpo
from launcher.train.artifacts import hand_on
from launcher.train.assemble import Task, assemble
from launcher.train.batches import answered_pairs
from launcher.train.course import Course, Figures, run_course, tell
from launcher.train.engines import Scoring
from launcher.train.evaluate import group_accuracy, pair_figures, score_rows
from launcher.train.mesh import make_mesh
from launcher.train.models import load_tokenizer
from launcher.train.objectives import PREFERENCE, Objective, preference
from launcher.train.ranks import meet
from launcher.train.reference import with_reference
from launcher.train.rows import load_rows
from launcher.train.shipped import score_shipped


def run(run: RunDir, job: JobSpec, stage: Dpo, order: StageOrder) -> None:
    """Train the policy, measure preferences before and after, hand it on."""
    started = time.time()
    ranks = meet(order)
    mesh = make_mesh(order, ranks)
    rows = load_rows(run, order, stage)
    tokenizer = load_tokenizer(run, order)
    set_seed(job.seed)
    objective = Objective(
        names=PREFERENCE,
        collate=answered_pairs,
        losses=lambda scores, batch: preference(scores[0], batch.reference_S, beta=stage.beta),
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
    pad, batch = tokenizer.pad_token_id, 2 * order.micro_batch
    rows = with_reference(run, order, ranks, assembled.engine, rows, stage=stage, seed=job.seed, pad=pad, batch=batch)
    course = Course(
        run=run,
        job=job,
        stage=stage,
        order=order,
        ranks=ranks,
        rows=rows,
        engine=assembled.engine,
        objective=objective,
        evaluate=partial(_figures, rows=rows.held_out, beta=stage.beta, pad=pad, batch=batch),
        pad=pad,
        started=started,
    )
    run_course(course)
    artifact = hand_on(run, order, ranks, assembled.trained)
    if task.quantize:
        score_shipped(course, task, artifact)
    tell(course)


def _figures(engine: Scoring, *, rows: Dataset, beta: float, pad: int, batch: int) -> Figures:
    nll, _ = score_rows(engine, rows, partial(answered_pairs, pad=pad, multiple=engine.mesh.sp), batch=batch)
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
