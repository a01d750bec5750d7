"""(JobSpec, Machine, ModelShape) -> Plan: every number of every stage, each with its reason, or every problem at once.

DERIVE, pure: facts about the machine and the model come in as arguments. The rules are in legality/, the search in choose.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.errors import LauncherError
from launcher.plan import reasons
from launcher.plan.asked import (
    answer_tokens,
    batch_of,
    global_of,
    is_quantized,
    max_tokens_of,
    parallel_of,
    precision_of,
)
from launcher.plan.choose import Chosen, Ground, Pinned, choose
from launcher.plan.legality.rule import Case, Spot, spots_of
from launcher.plan.legality.table import find_illegal
from launcher.plan.memory import Load, artifact_bytes, checkpoint_bytes
from launcher.plan.plan import Machine, Plan, StagePlan
from launcher.plan.shape import ModelShape
from launcher.plan.smallest_change import smallest_change
from launcher.spec.job import JobSpec
from launcher.spec.places import Finding, Places
from launcher.spec.stages import Stage
from launcher.units import bytes_text

CHECKPOINTS_PER_STAGE = 5
FEWEST_STEPS_BETWEEN = 25
STEPS_BETWEEN_WHERE_UNKNOWN = 500


def make_plan(job: JobSpec, *, machine: Machine, shape: ModelShape, places: Places) -> Plan:
    """The plan of every stage. LauncherError with all E2xx problems; memory is judged only where the arithmetic is right."""
    case = Case(job=job, machine=machine, shape=shape)
    _raise_if_any(find_illegal(case), places)
    planned = [_stage(spot) for spot in spots_of(case)]
    _raise_if_any([item for item in planned if isinstance(item, Finding)], places)
    plan = Plan(job=job.name, machine=machine, stages=tuple(item for item in planned if isinstance(item, StagePlan)))
    _raise_if_any(_disk_findings(case, plan), places)
    return plan


def _raise_if_any(findings: Sequence[Finding], places: Places) -> None:
    if findings:
        raise LauncherError(places.problems(findings))


def load_of(job: JobSpec, stage: Stage, shape: ModelShape) -> Load:
    """What the stage puts on a rank, whatever the layout."""
    kind = stage.kind
    return Load(
        shape=shape,
        kind=kind,
        adapter=job.model.adapter,
        quantized=is_quantized(job, kind),
        eager=job.model.attention == "eager",
        row_tokens=max_tokens_of(stage, shape) + answer_tokens(stage),
        answer_tokens=answer_tokens(stage),
    )


def pinned_of(job: JobSpec, stage: Stage) -> Pinned:
    asked = parallel_of(job, stage)
    return Pinned(
        zero=asked.settled_zero,
        checkpointing=asked.checkpointing,
        offload_optimizer=asked.optimizer,
        offload_parameters=asked.parameters,
        micro=batch_of(job, stage).micro_seqs,
        hpz=asked.hpz or 1,
        ratio=asked.ratio or 1.0,
    )


def _stage(spot: Spot) -> StagePlan | Finding:
    job, stage, asked = spot.job, spot.stage, spot.asked
    load, pinned = load_of(job, stage, spot.shape), pinned_of(job, stage)
    assert spot.dp is not None  # legality: the degrees divide the ranks
    ground = Ground(
        machine=spot.case.machine,
        dp=spot.dp,
        tp=asked.tensor,
        pp=asked.pipeline,
        sp=asked.sequence,
        precision=precision_of(job, stage, spot.case.machine),
        global_batch=global_of(job, stage),
    )
    chosen = choose(load, ground, pinned)
    if chosen is None:
        return _no_plan(spot.index, load, ground, pinned)
    return _stage_plan(spot, load, ground, chosen)


def _stage_plan(spot: Spot, load: Load, ground: Ground, chosen: Chosen) -> StagePlan:
    stage, layout, every = spot.stage, chosen.layout, _checkpoint_every(spot.stage)
    return StagePlan(
        name=stage.stage_name,
        kind=load.kind,
        world=ground.world,
        dp=ground.dp,
        tp=ground.tp,
        pp=ground.pp,
        sp=ground.sp,
        zero=layout.zero,
        offload_optimizer=layout.offload_optimizer,
        offload_parameters=layout.offload_parameters,
        precision=layout.precision,
        checkpointing=layout.checkpointing,
        micro_batch=layout.micro_batch,
        grad_accum=layout.grad_accum,
        global_batch=ground.global_batch,
        max_tokens=max_tokens_of(stage, spot.shape),
        checkpoint_every=every,
        num_params=load.num_params,
        num_trainable=load.num_trainable,
        memory=replace(chosen.memory, disk_bytes=_stage_disk_bytes(load, stage, chosen)),
        reasons=reasons.reasons_of(spot, load, ground, chosen, checkpoint_every=every),
        rejected=chosen.rejected,
        hidden=spot.shape.hidden,
    )


def _checkpoint_every(stage: Stage) -> int:
    """About five checkpoints a stage, but at least 25 steps apart; 500 steps where the number of steps is known only later."""
    if stage.checkpoint_every:
        return stage.checkpoint_every
    if stage.steps is None:
        return STEPS_BETWEEN_WHERE_UNKNOWN
    return max(FEWEST_STEPS_BETWEEN, -(-stage.steps // CHECKPOINTS_PER_STAGE))


def _stage_disk_bytes(load: Load, stage: Stage, chosen: Chosen) -> int:
    return stage.keep * checkpoint_bytes(load) + artifact_bytes(load, precision=chosen.layout.precision)


def _disk_findings(case: Case, plan: Plan) -> list[Finding]:
    """All stages keep their last checkpoints, and a new checkpoint is complete before an old one is removed."""
    free = case.machine.disk_free_bytes
    kept = [stage.memory.disk_bytes or 0 for stage in plan.stages]
    loads = [load_of(case.job, stage, case.shape) for stage in case.job.stages]
    writing = max(checkpoint_bytes(load) for load in loads)
    need = sum(kept) + writing
    if free is None or need <= free:
        return []
    what = f"{bytes_text(need)} of checkpoints and artifacts, {bytes_text(free)} are free where the run folder lies"
    largest = plan.stages[kept.index(max(kept))].name
    hint = f"free {bytes_text(need - free)}, or choose another disk with --runs; stage {largest} takes the most"
    return [Finding(code="E211", path=("stages",), what=what, hint=hint)]


def _no_plan(index: int, load: Load, ground: Ground, pinned: Pinned) -> Finding:
    least, change = smallest_change(load, ground, pinned)
    what = f"no plan fits: at least {bytes_text(least.peak_bytes)} a rank, {bytes_text(least.limit_bytes)} are there"
    return Finding(code="E210", path=("stages", index), what=what, hint=change)
