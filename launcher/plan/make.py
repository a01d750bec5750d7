"""(JobSpec, Machine, ModelShape) -> Plan: every number of every stage, each with its reason, or every problem at once.

DERIVE, pure: facts about the machine and the model come in as arguments. The rules are in legality/, the search in search.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.errors import LauncherError
from launcher.plan import reasons
from launcher.plan.asked import (
    answer_tokens,
    batch_of,
    batch_path,
    global_of,
    is_quantized,
    max_tokens_of,
    parallel_of,
    precision_of,
    rollout_of,
    updates_of,
)
from launcher.plan.batch import nearest_multiples
from launcher.plan.cost.of_stage import Clock, Rollout
from launcher.plan.cost.rates import Rates, catalogue_rates
from launcher.plan.degrees import legal_degrees
from launcher.plan.ladder import Ground, Pinned
from launcher.plan.legality.rule import Case, Spot, spots_of
from launcher.plan.legality.table import find_illegal
from launcher.plan.load import Load
from launcher.plan.memory import artifact_bytes, checkpoint_bytes
from launcher.plan.plan import Machine, Plan, Precision, Rejected, StagePlan
from launcher.plan.search import Found, merged, search
from launcher.plan.shape import ModelShape
from launcher.plan.smallest_change import smallest_change
from launcher.plan.told import cost_told, time_told
from launcher.spec.job import JobSpec
from launcher.spec.places import Finding, Places
from launcher.spec.stages import Ppo, Stage
from launcher.units import bytes_text

CHECKPOINTS_PER_STAGE = 5
FEWEST_STEPS_BETWEEN = 25
STEPS_BETWEEN_WHERE_UNKNOWN = 500
MOST_LOST_S = 3600  # of work, when a run dies just before a checkpoint


def make_plan(job: JobSpec, *, machine: Machine, shape: ModelShape, places: Places, rates: Rates | None = None) -> Plan:
    """The plan of every stage. LauncherError with all E2xx problems; memory is judged only where the arithmetic is right.

    `rates`: None takes the catalogue's.
    """
    rates = rates or catalogue_rates(machine)
    case = Case(job=job, machine=machine, shape=shape)
    _raise_if_any(find_illegal(case), places)
    planned = [_stage(spot, rates) for spot in spots_of(case)]
    _raise_if_any([item for item in planned if isinstance(item, Finding)], places)
    stages = tuple(item for item in planned if isinstance(item, StagePlan))
    plan = Plan(job=job.name, machine=machine, calibration=rates.calibration, stages=stages)
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
        tf32=job.tf32,
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
        quantized_weights=asked.quantized_weights,
        quantized_gradients=asked.quantized_gradients,
    )


def _stage(spot: Spot, rates: Rates) -> StagePlan | Finding:
    job, stage = spot.job, spot.stage
    load, pinned = load_of(job, stage, spot.shape), pinned_of(job, stage)
    precision = precision_of(job, stage, spot.case.machine)
    speeds = rates.speeds(spot.case.machine)
    clock = Clock(load, speeds, rollout=_rollout(job, stage), scale=rates.scale(precision).time) if speeds else None
    grounds: list[Ground] = []
    illegal: list[Rejected] = []
    for world in _worlds(spot, rates):
        fewer = spot if world == spot.case.world else _smaller(spot, world)
        degrees, refused = legal_degrees(fewer)
        illegal += refused if world == spot.case.world else []
        grounds += [_ground(fewer, world, one, precision, rates) for one in degrees]
    if not grounds:
        return _no_degrees(spot, illegal)
    found = search(load, grounds, pinned, clock, objective=job.objective)
    if found is None:
        return _no_plan(spot.index, load, grounds[0], pinned)
    return _stage_plan(spot, load, replace(found, rejected=(*found.rejected, *merged(illegal))), rates)


def _rollout(job: JobSpec, stage: Stage) -> Rollout | None:
    if not isinstance(stage, Ppo):
        return None
    return Rollout(prompts=rollout_of(job, stage), steps=updates_of(job, stage))


def _worlds(spot: Spot, rates: Rates) -> list[int]:
    """All ranks; where the cheapest plan is wanted, halves of them too, down to one, as long as hosts are used whole."""
    world, slots = spot.case.world, spot.case.machine.slots
    if spot.job.objective != "cost" or not spot.asked.searches or rates.gpu is None:
        return [world]
    halves = [world]
    while halves[-1] % 2 == 0:
        halves.append(halves[-1] // 2)
    usable = [one for one in halves if (one <= slots or one % slots == 0) and global_of(spot.job, spot.stage) % one == 0]
    return list(dict.fromkeys([world, *usable]))


def _smaller(spot: Spot, world: int) -> Spot:
    """The same stage on fewer ranks: whole hosts as long as there are such."""
    machine = spot.case.machine
    nodes = max(1, world // machine.slots)
    cluster = spot.job.cluster.model_copy(update={"slots": None})
    job = spot.job.model_copy(update={"cluster": cluster})
    case = replace(spot.case, job=job, machine=replace(machine, nodes=nodes, slots=world // nodes))
    return replace(spot, case=case)


def _ground(spot: Spot, world: int, degrees: tuple[int, int, int], precision: Precision, rates: Rates) -> Ground:
    tp, pp, sp = degrees
    return Ground(
        machine=spot.case.machine,
        dp=world // (tp * pp * sp),
        tp=tp,
        pp=pp,
        sp=sp,
        precision=precision,
        global_batch=global_of(spot.job, spot.stage),
        memory_scale=rates.scale(precision).memory,
    )


def _stage_plan(spot: Spot, load: Load, found: Found, rates: Rates) -> StagePlan:
    stage, fit = spot.stage, found.chosen.fit
    ground, layout = fit.ground, fit.layout
    num_steps = stage.steps * updates_of(spot.job, stage) if stage.steps else None
    time = time_told(load, ground, found.chosen.time, rates, num_steps=num_steps)
    scale = rates.scale(layout.precision)
    every = _checkpoint_every(stage, time.step_s if time else None)
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
        memory=replace(fit.memory, disk_bytes=_stage_disk_bytes(load, stage, layout.precision)),
        time=time,
        cost=cost_told(time, ground, rates),
        reasons=(
            *reasons.reasons_of(spot, load, found, checkpoint_every=every),
            *reasons.scaled(scale, layout.precision),
            *reasons.disturbed(rates.disturbed),
        ),
        rejected=found.rejected,
        pareto=found.front,
        judged=found.judged,
        hidden=spot.shape.hidden,
        time_scale=scale.time,
        memory_scale=scale.memory,
    )


def _checkpoint_every(stage: Stage, step_s: float | None) -> int:
    """About five checkpoints a stage, but at least 25 steps apart, and at most an hour of work to lose.

    500 steps where the number of steps is known only later.
    """
    if stage.checkpoint_every:
        return stage.checkpoint_every
    fifth = -(-stage.steps // CHECKPOINTS_PER_STAGE) if stage.steps else STEPS_BETWEEN_WHERE_UNKNOWN
    hour = round(MOST_LOST_S / step_s) if step_s else fifth
    return max(FEWEST_STEPS_BETWEEN, min(fifth, hour))


def _stage_disk_bytes(load: Load, stage: Stage, precision: Precision) -> int:
    return stage.keep * checkpoint_bytes(load) + artifact_bytes(load, precision=precision)


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


def _no_degrees(spot: Spot, illegal: Sequence[Rejected]) -> Finding:
    """Reached where some degrees suit the rows of a step, but a rule stands against each of them."""
    total, world = global_of(spot.job, spot.stage), spot.case.world
    reason = next((item for item in illegal if item.code != "E204"), illegal[0])
    what = f"{total} is not a multiple of {world} ranks, and {reason.plan} cannot be: {reason.text}"
    near = nearest_multiples(total, world)
    return Finding(
        code="E204", path=batch_path(spot.job, spot.index, "global"), what=what, hint=f"use {' or '.join(map(str, near))}"
    )


def _no_plan(index: int, load: Load, ground: Ground, pinned: Pinned) -> Finding:
    least, change = smallest_change(load, ground, pinned)
    what = f"no plan fits: at least {bytes_text(least.peak_bytes)} a rank, {bytes_text(least.limit_bytes)} are there"
    return Finding(code="E210", path=("stages", index), what=what, hint=change)
