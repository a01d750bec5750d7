"""One training run of one supervised stage: from the newest checkpoint or the start to the figures after. DO, collective.

The same loop for every layout: the engine knows how a step is computed, the loop knows which rows, which rate, when to look and
when to keep. Rows and rates depend on the step alone, so a run may go on under another layout; only dropout draws other masks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import read_json, write_json
from launcher.rundir.inputs import stage_inputs
from launcher.train.batches import micro_batches
from launcher.train.checkpoints import find_resume, seal, work_folder
from launcher.train.engines import Engine, Scoring
from launcher.train.leaving import Left, say_listening
from launcher.train.metrics import Metrics
from launcher.train.precision import LossScale
from launcher.train.ranks import Ranks, broadcast
from launcher.train.result import Pace
from launcher.train.rows import global_batch, num_steps, step_rows
from launcher.train.schedule import learning_rate
from launcher.train.states import load_states, save_states
from launcher.train.task import Task

# Held-out figures, and accuracy per group of rows where there are groups.
Figures = tuple[dict[str, float], dict[str, float]]


@dataclass(kw_only=True)
class Course:
    """A task and its engine, and what came out of them."""

    task: Task
    engine: Engine
    evaluate: Callable[[Scoring], Figures]
    check: Callable[[], None] | None = None  # before the first step; raises where the stage would train wrongly
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    groups: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: int = 0
    pace: Pace = field(default_factory=Pace)


def run_course(course: Course) -> None:
    """Train, with figures before and after. Left where the ranks were asked to leave, which they do together. Collective."""
    task, engine = course.task, course.engine
    order, ranks, stage = task.order, task.ranks, task.stage
    inputs = stage_inputs(task.run, read_json(task.run.job_json), order)
    total = num_steps(stage, order, len(task.rows.train))
    resume = find_resume(task.folder, order, ranks, inputs=inputs)
    course.notes += resume.notices
    resumed_at = resume.step if resume.folder else None
    metrics = Metrics(task.folder, rank=ranks.rank, tensorboard=task.job.tensorboard, resume_step=resumed_at)
    if course.check is not None:
        course.check()
    kept: dict[str, Any] = {}
    if resume.folder:
        course.notes.append(f"resumed from step {resume.step}")
        course.before = _kept_figures(course, inputs)
        kept = load_states(resume.folder, engine.raw, engine.pieces, engine.mesh)
    else:
        course.before = _first_figures(course, metrics, inputs)
    scale = LossScale(engine.raw, skipped=int(kept.get("skipped", 0)))
    say(ranks, _arithmetic(course, total))
    for note in course.notes:
        say(ranks, note)
    if ranks.first and order.checkpoint_every:
        say_listening(task.folder)
    for step in range(resume.step, total):
        leave = _train_step(course, metrics, scale, step=step, total=total)
        done = step + 1
        if order.checkpoint_every and (leave or done % order.checkpoint_every == 0):
            written = work_folder(task.folder) / f"step{done}"
            save_states(written, engine.raw, engine.pieces, engine.mesh, step=done, extra={"skipped": scale.skipped})
            seal(task.folder, written, order, ranks, step=done, inputs=inputs, keep=stage.keep)
            if leave:
                metrics.close()
                say(ranks, f"asked to leave: saved step {done}")
                raise Left(step=done, world=order.world)
    course.steps = total
    course.after, course.groups = course.evaluate(engine)
    engine.settle()
    metrics.log(total, {f"held_out/{name}": value for name, value in course.after.items()})
    metrics.close()
    say(ranks, f"held out before {figures_text(course.before)}; after {figures_text(course.after)}")


def _train_step(course: Course, metrics: Metrics, scale: LossScale, *, step: int, total: int) -> bool:
    """One step and its figures. True where the ranks leave behind it, on all of them."""
    task, mesh, train, began_s = course.task, course.task.mesh, course.task.rows.train, time.monotonic()
    order, stage, seed = task.order, task.stage, task.job.seed
    # Dropout depends on step and place only. A tensor group shares its seed, or replicated weights drift apart.
    torch.manual_seed(hash((seed, step, mesh.dp_rank, mesh.pp_rank, mesh.sp_rank)) % 2**63)
    numbers = step_rows(len(train), order, seed=seed, step=step)
    batches = [
        task.collate([train[number] for number in micro])
        for micro in micro_batches(numbers, micro=order.micro_batch, replica=mesh.dp_rank, replicas=mesh.dp)
    ]
    rate = learning_rate(stage, step, total)
    taken = course.engine.step(batches, lr=rate)
    figures = taken.figures
    _refuse_nan(course, figures, step + 1)
    scale.check(f"stage {order.stage}, step {step + 1}")
    # the step's figures have waited for the device
    course.pace.add(time.monotonic() - began_s, [batch.ids_ST.numel() / batch.num_rows for batch in batches])
    if step == 0 or (step + 1) % stage.log_every == 0 or step + 1 == total:
        epoch = (step + 1) * global_batch(order) / len(train)
        metrics.log(step + 1, {**figures, **scale.figures(), "learning_rate": rate, "epoch": epoch})
    return taken.leave


def _arithmetic(course: Course, total: int) -> str:
    order, mesh = course.task.order, course.task.mesh
    return (
        f"{order.stage}: {total} steps of {global_batch(order)} = {order.micro_batch} per replica x {order.grad_accum} "
        f"accumulated x {order.dp} replicas; {mesh.text()} on {order.world} ranks, ZeRO {order.zero}, {order.precision}, "
        f"{order.device}"
    )


def _first_figures(course: Course, metrics: Metrics, inputs: str) -> dict[str, float]:
    before, _ = course.evaluate(course.engine)
    if not all(map(math.isfinite, before.values())):
        what = f"held out before the first step: {figures_text(before)}"
        hint = "the weights that the stage starts from hold values that are not finite: check that folder"
        where = f"stage {course.task.order.stage}, {course.task.order.model}"
        raise LauncherError(Problem(code="E554", where=where, what=what, hint=hint))
    if course.task.ranks.first:
        write_json(_before_path(course), {"inputs": inputs, "before": before})
    metrics.log(0, {f"held_out/{name}": value for name, value in before.items()})
    return before


def _kept_figures(course: Course, inputs: str) -> dict[str, float]:
    """A resumed stage cannot measure the model it started from any more: the figures were kept beside the checkpoints."""
    try:
        told = read_json(_before_path(course)) if course.task.ranks.first else {}
    except (OSError, ValueError):
        told = {}
    told = broadcast(told)
    if told.get("inputs") == inputs:
        return dict(told["before"])
    course.notes.append("the figures before training were lost; only those after are known")
    return {}


def _before_path(course: Course) -> Path:
    return course.task.folder.path / "before.json"


def _refuse_nan(course: Course, figures: dict[str, float], step: int) -> None:
    order, stage = course.task.order, course.task.stage
    # In fp16 an infinite norm tells DeepSpeed to skip the step and lower the loss scale; at the lowest it stops.
    norm = 0.0 if order.precision == "fp16" else figures["grad_norm"]
    if math.isfinite(figures["loss"]) and math.isfinite(norm):
        return
    raise LauncherError(
        Problem(
            code="E554",
            where=f"stage {order.stage}, step {step}",
            what=f"loss {figures['loss']}, gradient norm {figures['grad_norm']}",
            hint=f"lower lr ({stage.lr:g}) or raise warmup ({stage.warmup:g}); the steps before: metrics.jsonl",
        )
    )


def say(ranks: Ranks, text: str) -> None:
    if ranks.first:
        print(text, flush=True)  # noqa: T201  the rank's log


def figures_text(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items()) or "unknown"
