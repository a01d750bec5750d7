"""(job, stage, order) → trainer arguments with nothing left to a default that trains wrongly, and one training run.

Stands on transformers' Trainer and TRL. The stories choose the trainer class, the model and the measure; everything that they
share is here: explicit arguments, the data order, the comparison of the engine with the plan, checkpoints, metrics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch.nn import Module
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir, read_json, write_json
from launcher.rundir.inputs import stage_inputs
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.stages import StageBase
from launcher.train.agreement import compare_engine, refuse_wrong_config
from launcher.train.checkpoints import find_resume, seal, work_folder
from launcher.train.metrics import Metrics
from launcher.train.ranks import Ranks, broadcast
from launcher.train.result import write_result
from launcher.train.rows import DataOrder, Rows, global_batch, num_steps

# Held-out figures, and accuracy per group of rows where there are groups.
Figures = tuple[dict[str, float], dict[str, float]]

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
# Trainer's or TRL's name of a logged figure -> ours. Anything else that they log is left out.
LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
    "accuracy": "accuracy",
    "margin": "margin",
    "mean_reward": "mean_reward",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
}


def arguments(config_class: type, run: RunDir, job: JobSpec, stage: StageBase, order: StageOrder, rows: Rows, **extra):
    """The trainer's arguments. Built before any model: under ZeRO-3 they register the config that partitions it."""
    refuse_wrong_config(run, stage, order)
    steps = num_steps(stage, order, len(rows.train))
    return config_class(
        output_dir=str(work_folder(run.stage(order.stage))),
        deepspeed=str(run.ds_config(order.stage)),
        max_steps=steps,
        per_device_train_batch_size=order.micro_batch,
        gradient_accumulation_steps=order.grad_accum,
        learning_rate=stage.lr,
        lr_scheduler_type=SCHEDULES[stage.schedule],
        warmup_steps=math.ceil(stage.warmup * steps),
        optim="adamw_torch",
        weight_decay=stage.weight_decay,  # the Trainer leaves biases and norms out
        adam_beta1=stage.betas[0],
        adam_beta2=stage.betas[1],
        adam_epsilon=stage.eps,
        max_grad_norm=stage.clip,
        seed=job.seed,
        data_seed=job.seed,
        # TRL turns bf16 and checkpointing on by itself, the Trainer both off: always say which.
        bf16=order.precision == "bf16",
        fp16=order.precision == "fp16",
        gradient_checkpointing=order.checkpointing == "full",
        # Without use_cpu, accelerate takes the world of a CPU job for 1 and divides the batch wrongly.
        use_cpu=order.device == "cpu",
        average_tokens_across_devices=True,  # the loss is a mean over the tokens of all ranks and accumulation steps
        train_sampling_strategy="random",
        dataloader_num_workers=0,
        dataloader_pin_memory=order.device == "cuda",
        remove_unused_columns=True,
        eval_strategy="no",  # ours: train/evaluate.py
        save_strategy="steps" if order.checkpoint_every else "no",
        save_steps=order.checkpoint_every or 1,
        save_only_model=False,
        logging_strategy="steps",
        logging_steps=stage.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # true hides a NaN loss behind the mean of the steps before
        report_to="none",
        disable_tqdm=True,
        label_smoothing_factor=0.0,
        **extra,
    )


class Steady(Trainer):
    """Mixin before a trainer class: the data order of the plan, and checkpoints without a second copy of the weights."""

    order: StageOrder
    job_seed: int

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        total = self.args.max_steps * global_batch(self.order)
        return DataOrder(len(rows), seed=self.job_seed, total=total)

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        """Checkpoints hold the engine's own states, which include the weights. What is handed on: train/artifacts.py."""
        assert _internal_call, "hand_on writes models, the Trainer does not"
        Path(output_dir).mkdir(parents=True, exist_ok=True)

    def create_model_card(self, *args, **kwargs) -> None:
        """TRL writes a README beside each checkpoint; it would be in every manifest and says nothing."""


@dataclass(kw_only=True)
class Course:
    """One training run of one stage: what the callback needs, and what came out."""

    run: RunDir
    job: JobSpec
    stage: StageBase
    order: StageOrder
    ranks: Ranks
    rows: Rows
    evaluate: Callable[[Module], Figures]  # of the engine, or of a plain model
    started: float = field(default_factory=time.time)
    check: Callable[[], None] | None = None
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    groups: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: int = 0


def run_course(trainer: Steady, course: Course) -> None:
    """Train from the newest fitting checkpoint or from the start, with figures before and after. Collective."""
    run, order, ranks = course.run, course.order, course.ranks
    stage_dir = run.stage(order.stage)
    trainer.order, trainer.job_seed = order, course.job.seed
    inputs = stage_inputs(run, read_json(run.job_json), order)
    resume = find_resume(stage_dir, order, ranks, inputs=inputs)
    course.notes += resume.notices
    resumed_at = resume.step if resume.folder else None
    if resume.folder:
        course.notes.append(f"resumed from step {resume.step}")
    metrics = Metrics(stage_dir, rank=ranks.rank, tensorboard=course.job.tensorboard, resume_step=resumed_at)
    watch = _Watch(trainer, course, metrics, inputs=inputs, resumed=resume.folder is not None)
    trainer.add_callback(watch)
    _say(
        ranks,
        f"{order.stage}: {trainer.args.max_steps} steps of {global_batch(order)} = {order.micro_batch} per rank x "
        f"{order.grad_accum} accumulated x {order.world} ranks; ZeRO {order.zero}, {order.precision}, {order.device}",
    )
    for note in course.notes:
        _say(ranks, note)
    trainer.train(resume_from_checkpoint=str(resume.folder) if resume.folder else None)
    course.steps = trainer.state.global_step
    course.after, course.groups = watch.measure()
    metrics.log(course.steps, {f"held_out/{name}": value for name, value in course.after.items()})
    metrics.close()
    _say(ranks, f"held out before {_text(course.before)}; after {_text(course.after)}")


def tell(course: Course) -> None:
    """result.json of the course as it stands. Collective."""
    write_result(
        course.run,
        course.order,
        course.ranks,
        before=course.before,
        after=course.after,
        groups=course.groups,
        steps=course.steps,
        started=course.started,
        notes=course.notes,
    )


def score_shipped(course: Course, model: PreTrainedModel, evaluate: Callable[[Module], Figures]) -> None:
    """After an adapter on a 4-bit base: figures of the merged, unquantised model handed on, which differ. Collective."""
    course.notes.append(f"on its 4-bit base the adapter reached {_text(course.after)}; `after` is the merged model handed on")
    course.after, course.groups = evaluate(model.to(course.ranks.device).eval())


class _Watch(TrainerCallback):
    """Ours inside the Trainer's loop: compares the engine, measures before, logs, seals checkpoints, stops at NaN."""

    def __init__(self, trainer: Steady, course: Course, metrics: Metrics, *, inputs: str, resumed: bool):
        self._trainer, self._course, self._metrics = trainer, course, metrics
        self._inputs, self._resumed = inputs, resumed

    def measure(self) -> Figures:
        engine = self._trainer.model_wrapped
        was_training = engine.training
        engine.eval()
        figures = self._course.evaluate(engine)
        engine.train(was_training)
        return figures

    def on_train_begin(self, args, state, control, **kwargs):
        course = self._course
        compare_engine(self._trainer.model_wrapped, course.stage, course.order)
        if course.check is not None:
            course.check()
        kept = course.run.stage(course.order.stage).path / "before.json"
        course.before = self._kept(kept) if self._resumed else self._first(kept)

    def _first(self, kept: Path) -> dict[str, float]:
        before, _ = self.measure()
        if self._course.ranks.first:
            write_json(kept, {"inputs": self._inputs, "before": before})
        self._metrics.log(0, {f"held_out/{name}": value for name, value in before.items()})
        return before

    def _kept(self, kept: Path) -> dict[str, float]:
        """A resumed stage cannot measure the model it started from any more: the figures were kept beside the checkpoints."""
        try:
            told = read_json(kept) if self._course.ranks.first else {}
        except (OSError, ValueError):
            told = {}
        told = broadcast(told)
        if told.get("inputs") == self._inputs:
            return told["before"]
        self._course.notes.append("the figures before training were lost; only those after are known")
        return {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        values = {LOGGED[name]: float(value) for name, value in logs.items() if name in LOGGED}
        values["epoch"] = state.global_step * global_batch(self._course.order) / len(self._course.rows.train)
        self._metrics.log(state.global_step, values)
        # In fp16 DeepSpeed tells an infinite norm of a step that it skips to lower the loss scale; at the lowest it stops.
        norm = 0.0 if self._course.order.precision == "fp16" else values.get("grad_norm", 0.0)
        if not math.isfinite(values["loss"]) or not math.isfinite(norm):
            raise LauncherError(
                Problem(
                    code="E554",
                    where=f"stage {self._course.order.stage}, step {state.global_step}",
                    what=f"loss {values['loss']}, gradient norm {values.get('grad_norm')}",
                    hint=f"lower lr ({self._course.stage.lr:g}) or raise warmup ({self._course.stage.warmup:g}); metrics.jsonl "
                    "holds the steps before",
                )
            )

    def on_save(self, args, state, control, **kwargs):
        course = self._course
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        stage_dir = course.run.stage(course.order.stage)
        seal(
            stage_dir, written, course.order, course.ranks, step=state.global_step, inputs=self._inputs, keep=course.stage.keep
        )


def _say(ranks: Ranks, text: str) -> None:
    if ranks.first:
        print(text, flush=True)  # noqa: T201  the rank's log


def _text(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items()) or "unknown"
