"""Reward model: one score per sequence, -log sigmoid(score(chosen) - score(rejected)), trained on preference pairs.

The head `score` is new and has one output; a small pull keeps scores near 0 (stage.center). On held-out pairs the stage tells
accuracy and margin, overall and per group. The gate is the supervisor's: it stops the chain, what was trained is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from datasets import Dataset
from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import Reward
from launcher.train.adapters import lora_config, restore_dtype
from launcher.train.artifacts import hand_on
from launcher.train.evaluate import group_accuracy, measure_rows, pair_figures
from launcher.train.models import dtype_of, load_reward, load_tokenizer, unpartitioned
from launcher.train.ranks import Ranks, meet
from launcher.train.rows import load_rows
from launcher.train.trainer import Course, Figures, Steady, arguments, run_course, score_shipped, tell


class PairTrainer(Steady, RewardTrainer):
    """RewardTrainer on pairs that prepare has tokenised (chosen_ids, rejected_ids)."""


def run(run: RunDir, job: JobSpec, stage: Reward, order: StageOrder) -> None:
    """Train the scorer, measure it, hand it on."""
    started = time.time()
    ranks = meet(order)
    rows = load_rows(run, order, stage)
    tokenizer = load_tokenizer(run, order)
    args = arguments(
        RewardConfig,
        run,
        job,
        stage,
        order,
        rows,
        center_rewards_coefficient=stage.center,
        max_length=None,  # prepare has dropped and counted the long pairs
        disable_dropout=True,
    )
    set_seed(job.seed)
    adapter, quantize = job.model.adapter, job.model.quantize is not None
    model = load_reward(run.path / order.model, order, job.model, tokenizer, quantize=quantize)
    trainer = PairTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=rows.train,
        peft_config=lora_config(adapter, "reward") if adapter else None,
    )
    if quantize:
        restore_dtype(trainer.model, dtype_of(order))
    evaluate = _evaluator(trainer, ranks, rows.held_out, batch=2 * order.micro_batch)
    course = Course(run=run, job=job, stage=stage, order=order, ranks=ranks, rows=rows, evaluate=evaluate, started=started)
    run_course(trainer, course)
    tell(course)
    artifact = hand_on(run, order, ranks, trainer.model_wrapped)
    if quantize:
        with unpartitioned():
            score_shipped(course, load_reward(artifact, order, job.model, tokenizer), evaluate)
        tell(course)


def _evaluator(trainer: PairTrainer, ranks: Ranks, rows: Dataset, *, batch: int) -> Callable[[torch.nn.Module], Figures]:
    def measure(scorer: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scores = scorer(**inputs, use_cache=False).logits.float().squeeze(-1)
        chosen, rejected = scores.chunk(2)
        return {"margin": chosen - rejected}

    def evaluate(scorer: torch.nn.Module) -> Figures:
        columns = measure_rows(ranks, rows, trainer.data_collator, partial(measure, scorer), batch=batch)
        return pair_figures(columns), group_accuracy(columns, rows["group"])

    return evaluate
