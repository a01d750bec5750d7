"""A finished course → its artifact and its result. DO, collective: the last lines of every supervised story."""

from __future__ import annotations

from pathlib import Path

from launcher.train.artifacts import Trained, hand_on
from launcher.train.assemble import whole_scorer
from launcher.train.course import Course, figures_text
from launcher.train.models import load_causal, load_reward, unpartitioned
from launcher.train.result import write_result
from launcher.train.spread import spread


def hand_over(course: Course, trained: Trained) -> None:
    """Write artifact/ and result.json. After an adapter on a 4-bit base the figures are those of the merged model."""
    task = course.task
    artifact = hand_on(task.run, task.order, task.ranks, trained)
    if task.quantize:
        _score_shipped(course, artifact)
    write_result(
        task.run,
        task.order,
        task.ranks,
        before=course.before,
        after=course.after,
        groups=course.groups,
        steps=course.steps,
        started=task.started,
        notes=course.notes,
        pace=course.pace,
    )


def _score_shipped(course: Course, artifact: Path) -> None:
    """What is handed on is merged and unquantised, and scores otherwise than what was trained, which becomes a note."""
    task = course.task
    spread(artifact, task.ranks)
    load = load_reward if task.order.model_kind == "reward" else load_causal
    with unpartitioned():
        model = load(artifact, task.order, task.job.model, task.tokenizer)
        course.notes.append(
            f"on its 4-bit base the adapter reached {figures_text(course.after)}; `after` is the merged model handed on"
        )
        course.after, course.groups = course.evaluate(whole_scorer(model, task))
