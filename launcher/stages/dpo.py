"""Direct preference optimisation against the model that the stage starts from.

The reference is that model, frozen (with an adapter: the same model with the adapter off, no second copy). Both answers'
log-probabilities usually fall, the rejected one's further: both are printed. One rank or many, as in pretrain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import set_seed
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import Dpo
from launcher.train.adapters import lora_config, restore_dtype
from launcher.train.artifacts import hand_on
from launcher.train.evaluate import group_accuracy, measure_rows, pair_figures
from launcher.train.models import dtype_of, load_causal, load_tokenizer, unpartitioned
from launcher.train.ranks import Ranks, meet
from launcher.train.rows import load_rows
from launcher.train.trainer import Course, Figures, Steady, arguments, run_course, score_shipped, tell


class PreferenceTrainer(Steady, DPOTrainer):
    """DPOTrainer on rows that prepare has tokenised (prompt_ids, chosen_ids, rejected_ids); it would tokenise them again."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def run(run: RunDir, job: JobSpec, stage: Dpo, order: StageOrder) -> None:
    """Train the policy, measure preferences before and after, hand it on."""
    started = time.time()
    ranks = meet(order)
    rows = load_rows(run, order, stage)
    tokenizer = load_tokenizer(run, order)
    args = arguments(
        DPOConfig,
        run,
        job,
        stage,
        order,
        rows,
        beta=stage.beta,
        loss_type=["sigmoid"],
        max_length=None,  # prepare has dropped and counted the long pairs
        disable_dropout=True,
        precompute_ref_log_probs=False,
    )
    set_seed(job.seed)
    folder, adapter, quantize = run.path / order.model, job.model.adapter, job.model.quantize is not None
    model = load_causal(folder, order, job.model, tokenizer, quantize=quantize)
    reference = None if adapter else load_causal(folder, order, job.model, tokenizer)
    trainer = PreferenceTrainer(
        model=model,
        ref_model=reference,
        args=args,
        processing_class=tokenizer,
        train_dataset=rows.train,
        peft_config=lora_config(adapter, "causal") if adapter else None,
    )
    if quantize:
        restore_dtype(trainer.model, dtype_of(order))
    evaluate = _evaluator(trainer, stage, ranks, rows.held_out, batch=2 * order.micro_batch)
    course = Course(run=run, job=job, stage=stage, order=order, ranks=ranks, rows=rows, evaluate=evaluate, started=started)
    run_course(trainer, course)
    artifact = hand_on(run, order, ranks, trainer.model_wrapped)
    if quantize:
        with unpartitioned():
            shipped, plain = (load_causal(place, order, job.model, tokenizer) for place in (artifact, folder))
            for model in (shipped, plain):
                add_fused_lm_head(model)
            score_shipped(course, shipped, partial(evaluate, reference=plain.to(ranks.device).eval()))
    tell(course)


def _evaluator(
    trainer: PreferenceTrainer, stage: Dpo, ranks: Ranks, rows: Dataset, *, batch: int
) -> Callable[[torch.nn.Module], Figures]:
    """Figures of a policy against a reference: the trainer's own (a second engine, or the adapter off), or the one given."""

    def measure(
        policy: torch.nn.Module, reference: torch.nn.Module, inputs: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        chosen, rejected = _answer_log_probs(policy, inputs)
        reference_chosen, reference_rejected = trainer.compute_ref_log_probs(reference, inputs)
        margin = stage.beta * ((chosen - reference_chosen) - (rejected - reference_rejected)).float()
        return {"margin": margin, "loss": -F.logsigmoid(margin), "chosen_logp": chosen, "rejected_logp": rejected}

    def evaluate(policy: torch.nn.Module, reference: torch.nn.Module | None = None) -> Figures:
        reference = reference or trainer.ref_model or trainer.model_wrapped
        columns = measure_rows(ranks, rows, trainer.data_collator, partial(measure, policy, reference), batch=batch)
        figures = pair_figures(columns)
        figures |= {name: float(columns[name].mean()) for name in ("loss", "chosen_logp", "rejected_logp")}
        return figures, group_accuracy(columns, rows["group"])

    return evaluate


def _answer_log_probs(engine, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats per whole answer, chosen and rejected, summed over answer tokens."""
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    out = engine(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=labels,
        use_cache=False,
        fused_lm_head=True,
    )
    chosen, rejected = out.log_probs.float().sum(1).chunk(2)
    return chosen, rejected
