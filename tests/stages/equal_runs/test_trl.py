"""TRL's trainers as a second yardstick: on the same rows in the same order our loop gives their losses, step by step.

One process, plain data parallelism; TRL without DeepSpeed. Seen: 5e-7.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.equal_runs.compare import case_run
from tests.stages.equal_runs.table import GLOBAL_SEQS, NUM_STEPS, Case, case
from tests.stages.harness import run_ranks
from tests.stages.look import curve, train

pytestmark = pytest.mark.ranks

TOLERANCE = 5e-6
WARMUP = 0.0


def trl_losses(world: Path, each: Case, job_json: Path, out: Path) -> list[float]:
    """What the trainer of TRL that belongs to this kind minimises, step by step. Runs in a forked rank."""
    from datasets import load_from_disk
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    from launcher.spec.job import JobSpec
    from launcher.train.rows import row_numbers

    job = JobSpec.model_validate_json(job_json.read_text())
    stage = job.stages[0]
    config, base, extra = {
        "sft": (SFTConfig, SFTTrainer, {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False}),
        "reward": (RewardConfig, RewardTrainer, {"center_rewards_coefficient": getattr(stage, "center", None)}),
        "dpo": (DPOConfig, DPOTrainer, {"beta": getattr(stage, "beta", None), "loss_type": ["sigmoid"]}),
    }[each.kind]

    class Told(base):
        """Keeps the losses before they are rounded and averaged for the log."""

        losses: list[float] = []  # noqa: RUF012  one trainer in this process

        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset  # tokenised already

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.losses.append(float(loss))
            return loss

    rows = load_from_disk(str(world / each.rows / "train"))
    rows = rows.select(row_numbers(len(rows), seed=job.seed, start=0, stop=NUM_STEPS * GLOBAL_SEQS))
    trainer = Told(
        model=_load(world / "models" / each.model, job),
        args=config(
            output_dir=str(out),
            max_steps=NUM_STEPS,
            per_device_train_batch_size=GLOBAL_SEQS,
            learning_rate=stage.lr,
            lr_scheduler_type=stage.schedule,
            warmup_steps=0,
            optim="adamw_torch",
            weight_decay=stage.weight_decay,
            adam_epsilon=stage.eps,
            max_grad_norm=stage.clip,
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **extra,
        ),
        processing_class=AutoTokenizer.from_pretrained(world / "tokenizer"),
        train_dataset=rows,
        **({"ref_model": _load(world / "models" / each.model, job)} if each.kind == "dpo" else {}),
    )
    trainer.train()
    return trainer.losses


def _load(folder: Path, job):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from launcher.train.weights import drawn

    if job.stages[0].kind != "reward":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1)
    weight = model.score.weight
    weight.data = drawn("score.weight", tuple(weight.shape), seed=job.seed, std=0.02)
    return model


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_our_loop_gives_the_losses_of_trl(families, tmp_path, kind):
    each = case(kind=kind, dp=2)
    run = case_run(families, each, stage={"clip": each.clip, "lr": each.lr, "eps": 1e-6, "warmup": WARMUP, "eval_rows": 2})
    train(run, kind, ranks=2)
    [theirs] = run_ranks(trl_losses, families, each, run.job_json, tmp_path, world=1)

    assert len(theirs) == NUM_STEPS
    assert curve(run, kind) == pytest.approx(theirs, abs=TOLERANCE)
