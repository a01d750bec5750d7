"""JobSpec -> what its stages and fields say against each other. ASK, pure. Each rule is one small function in a table.

What depends on the machine, the model's config.json or the batch arithmetic is judged in plan/legality/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from launcher.spec.combine import FIELD_RULES, STAGE_FIELD_RULES
from launcher.spec.job import JobSpec
from launcher.spec.parallel import ParallelSpec
from launcher.spec.places import FieldPath, Finding
from launcher.spec.stages import BatchSpec, Ppo, Reward, Stage
from launcher.spec.wording import listed, nearest


def parent_of(job: JobSpec, stage: Stage) -> Stage | None:
    """The stage whose model `stage` starts from: the one it names, else the one before; None: it starts from job.model."""
    index = job.stages.index(stage)
    if stage.parent is not None:
        return _by_name(job, stage.parent)
    return job.stages[index - 1] if index else None


def effective_batch(job: JobSpec, stage: Stage) -> BatchSpec:
    """The stage's own batch, field by field, over the job's."""
    if stage.batch is None:
        return job.batch
    given = {name: value for name, value in stage.batch if value is not None}
    return job.batch.model_copy(update=given)


def effective_parallel(job: JobSpec, stage: Stage) -> ParallelSpec | None:
    """The stage's own block as a whole, else the job's: a layout is one thing, half of another one makes no sense in it."""
    return job.parallel if stage.parallel is None else stage.parallel


def check(job: JobSpec) -> list[Finding]:
    """Everything in the job that cannot be meant, rule by rule."""
    findings = [finding for rule in (*CHAIN_RULES, *FIELD_RULES) for finding in rule(job)]
    for index, stage in enumerate(job.stages):
        findings += [finding for rule in STAGE_FIELD_RULES for finding in rule(job, stage, ("stages", index))]
    return findings


def names_are_unique(job: JobSpec) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, stage in enumerate(job.stages):
        name = stage.stage_name
        if name not in first:
            first[name] = index
            continue
        what = f"stage {name} stands here and as stage number {first[name] + 1}"
        taken = {other.stage_name for other in job.stages}
        free = next(f"{name}-{number}" for number in range(2, 100) if f"{name}-{number}" not in taken)
        path: FieldPath = ("stages", index, "name")
        yield Finding(code="E110", path=path, what=what, hint=f"add `name: {free}`", also=(("stages", index, "kind"),))


def parents_come_before(job: JobSpec) -> Iterator[Finding]:
    for index, stage in enumerate(job.stages):
        path: FieldPath = ("stages", index, "from")
        if stage.parent is not None:
            yield from _reference(job, index, path, stage.parent, [s.stage_name for s in job.stages[:index] if _fits(s, stage)])


def rewards_come_before(job: JobSpec) -> Iterator[Finding]:
    for index, stage in enumerate(job.stages):
        if isinstance(stage, Ppo):
            rewards = [before.stage_name for before in job.stages[:index] if isinstance(before, Reward)]
            yield from _reference(job, index, ("stages", index, "reward"), stage.reward, rewards)


def kinds_fit(job: JobSpec) -> Iterator[Finding]:
    """A reward model scores, it does not write: no language model can start from it."""
    for index, stage in enumerate(job.stages):
        parent = _by_name(job, stage.parent) if stage.parent else None
        if isinstance(parent, Reward) and not _fits(parent, stage) and parent in job.stages[:index]:
            what = f"{parent.stage_name} hands on a reward model, {stage.kind} needs a language model"
            yield Finding(code="E110", path=("stages", index, "from"), what=what, hint=_choice(job, index))
        scorer = _by_name(job, stage.reward) if isinstance(stage, Ppo) else None
        if scorer and not isinstance(scorer, Reward) and scorer in job.stages[:index]:
            rewards = [s.stage_name for s in job.stages[:index] if isinstance(s, Reward)]
            hint = f"use {listed(rewards)}" if rewards else "add a stage of kind reward before this one"
            what = f"{scorer.stage_name} is of kind {scorer.kind}, not reward"
            yield Finding(code="E110", path=("stages", index, "reward"), what=what, hint=hint)


def parents_are_clear(job: JobSpec) -> Iterator[Finding]:
    """Behind a reward stage, `the stage before` is hardly ever meant."""
    for index, stage in enumerate(job.stages):
        before = job.stages[index - 1] if index else None
        if stage.parent is None and isinstance(before, Reward):
            what = f"is missing, and the stage before ({before.stage_name}) hands on a reward model"
            path: FieldPath = ("stages", index, "from")
            yield Finding(code="E110", path=path, what=what, hint=_choice(job, index), also=(("stages", index - 1),))


CHAIN_RULES: tuple[Callable[[JobSpec], Iterator[Finding]], ...] = (
    names_are_unique,
    parents_come_before,
    rewards_come_before,
    kinds_fit,
    parents_are_clear,
)


_NOTHING_BEFORE = {
    "from": "remove it, or add the stage that is meant before this one",
    "reward": "add a stage of kind reward before this one",
}


def _by_name(job: JobSpec, name: str) -> Stage | None:
    return next((stage for stage in job.stages if stage.stage_name == name), None)


def _fits(parent: Stage, stage: Stage) -> bool:
    return not isinstance(parent, Reward) or isinstance(stage, Reward)


def _choice(job: JobSpec, index: int) -> str:
    names = [stage.stage_name for stage in job.stages[:index] if not isinstance(stage, Reward)]
    return f"write `from: {names[-1]}`" if names else "put a stage that trains a language model before it"


def _reference(job: JobSpec, index: int, path: FieldPath, name: str, usable: list[str]) -> Iterator[Finding]:
    """A finding where `name` is not the name of a stage before stage `index`."""
    names = [stage.stage_name for stage in job.stages]
    if name in names[:index]:
        return
    if name == names[index]:
        what = f"{name} is this stage itself"
    elif name in names:
        what = f"{name} is stage number {names.index(name) + 1}, it runs after this one"
    else:
        what = f"there is no stage {name}"
    usable = list(dict.fromkeys(usable))
    meant = nearest(name, usable)
    hint = f"did you mean {meant}?" if meant else f"use {listed(usable)}" if usable else _NOTHING_BEFORE[str(path[-1])]
    yield Finding(code="E110", path=path, what=what, hint=hint, also=tuple(("stages", i, "name") for i in range(len(names))))
