"""After an adapter on a 4-bit base: figures of the merged, unquantised model that is handed on, which differ. Collective."""

from __future__ import annotations

from pathlib import Path

from launcher.train.assemble import Task, whole_scorer
from launcher.train.course import Course, figures_text
from launcher.train.models import load_causal, load_reward, unpartitioned


def score_shipped(course: Course, task: Task, artifact: Path) -> None:
    """Replace the figures after training by those of the artifact; what the 4-bit model reached becomes a note."""
    load = load_reward if task.order.model_kind == "reward" else load_causal
    with unpartitioned():
        model = load(artifact, task.order, task.job.model, task.tokenizer)
        course.notes.append(
            f"on its 4-bit base the adapter reached {figures_text(course.after)}; `after` is the merged model handed on"
        )
        course.after, course.groups = course.evaluate(whole_scorer(model, task))
