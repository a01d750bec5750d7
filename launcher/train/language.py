"""What pretraining and SFT share: token loss by TRL's SFTTrainer on rows that prepare has tokenised and labelled."""

from __future__ import annotations

import time

import torch
from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.model import Lora
from launcher.spec.stages import Pretrain, Sft
from launcher.train.adapters import lora_config, restore_dtype
from launcher.train.artifacts import hand_on
from launcher.train.evaluate import measure_rows, token_figures
from launcher.train.models import dtype_of, load_causal, load_tokenizer, unpartitioned
from launcher.train.ranks import Ranks, meet
from launcher.train.rows import load_rows, unpack
from launcher.train.trainer import Course, Figures, Steady, arguments, run_course, score_shipped, tell

# A row behind another one in a pack must score as it does alone; a leak moves log-probabilities by nats.
PACK_TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}


class LanguageTrainer(Steady, SFTTrainer):
    """SFTTrainer on rows that need no preparation any more."""


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
    rows = load_rows(run, order, stage)
    tokenizer = load_tokenizer(run, order)
    args = arguments(
        SFTConfig,
        run,
        job,
        stage,
        order,
        rows,
        dataset_kwargs={"skip_prepare_dataset": True},  # else every rank filters, and packs again, what prepare has done
        padding_free=packed,  # one row without padding; position_ids restart, no attention mask: documents stay apart
        packing=False,
        max_length=None,
        shuffle_dataset=False,
    )
    set_seed(job.seed)
    model = load_causal(run.path / order.model, order, job.model, tokenizer, quantize=quantize)
    trainer = LanguageTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=rows.train,
        peft_config=lora_config(adapter, "causal") if adapter else None,
    )
    if quantize:
        restore_dtype(trainer.model, dtype_of(order))
    held_out = unpack(rows.held_out)

    def evaluate(scorer: torch.nn.Module) -> Figures:
        return _token_figures(scorer, ranks, held_out, tokenizer.pad_token_id, batch=2 * order.micro_batch), {}

    course = Course(run=run, job=job, stage=stage, order=order, ranks=ranks, rows=rows, evaluate=evaluate, started=started)
    if packed:
        course.check = lambda: refuse_leaking_packs(trainer, ranks, order, held_out, tokenizer.pad_token_id)
    run_course(trainer, course)
    artifact = hand_on(run, order, ranks, trainer.model_wrapped)
    if quantize:
        with unpartitioned():
            shipped = load_causal(artifact, order, job.model, tokenizer)
            add_fused_lm_head(shipped, outputs=("log_probs", "is_top1"))
            score_shipped(course, shipped, evaluate)
    tell(course)


def _token_figures(scorer: torch.nn.Module, ranks: Ranks, rows: Dataset, pad: int, *, batch: int) -> dict[str, float]:
    collate = DataCollatorForLanguageModeling(pad_token_id=pad)

    def measure(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = scorer(**inputs, use_cache=False, fused_lm_head=True)
        return {"nll": -out.log_probs.float().sum(1), "tokens": out.label_mask.sum(1), "correct": out.is_top1.sum(1)}

    return token_figures(measure_rows(ranks, rows, collate, measure, batch=batch))


def refuse_leaking_packs(trainer: LanguageTrainer, ranks: Ranks, order: StageOrder, rows: Dataset, pad: int) -> None:
    """Score two rows in one pack and each alone with this model and kernel; E559 where they differ. Collective."""
    pair = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows.select(range(min(2, len(rows))))]
    if len(pair) < 2:
        return
    collate = DataCollatorForLanguageModeling(pad_token_id=pad, padding_free=True)
    engine = trainer.model_wrapped
    was_training = engine.training
    engine.eval()
    with torch.no_grad():
        packed, alone = (_log_probs(engine, collate(rows), ranks) for rows in (pair, pair[1:]))
    engine.train(was_training)
    difference = (packed[:, -alone.shape[1] :] - alone).abs().max().item()
    if not difference <= PACK_TOLERANCE_NATS[next(engine.module.parameters()).dtype]:
        raise LauncherError(
            Problem(
                code="E559",
                where=f"stage {order.stage}",
                what=f"a row scores {difference:.2g} nats differently behind another row than alone",
                hint="set packing: false, or model.attention: sdpa",
            )
        )


def _log_probs(engine, inputs: dict, ranks: Ranks) -> torch.Tensor:
    inputs = {key: value.to(ranks.device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    return engine(**inputs, use_cache=False, fused_lm_head=True).log_probs.float()
