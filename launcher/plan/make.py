"""(JobSpec, Machine, ModelShape) -> Plan: every number of every stage, each with its reason, or every problem at once.

DERIVE, pure: facts about the machine and the model come in as arguments. The rules are in legality/, the search in search.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from launcher.errors import LauncherError
from launcher.plan import reasons
from launcher.plan.asked import batch_path, global_of, max_tokens_of, precision_of, rollout_of, updates_of
from launcher.plan.batch import nearest_multiples
from launcher.plan.cost.of_stage import Clock, Rollout
from launcher.plan.cost.rates import Rates, catalogue_rates
from launcher.plan.grounds import grounds_of, load_of, pinned_of
from launcher.plan.ladder import host_bytes, host_fits, short_of
from launcher.plan.legality.rule import Case, Spot, spots_of
from launcher.plan.legality.table import find_illegal
from launcher.plan.load import Load
from launcher.plan.memory import artifact_bytes, checkpoint_bytes
from launcher.plan.plan import Machine, Plan, Precision, Rejected, StagePlan
from launcher.plan.rejected import merged
from launcher.plan.search import Found, Short, fits_anywhere, search
from launcher.plan.shape import ModelShape
from launcher.plan.smallest_change import smallest_change
from launcher.plan.spacing import spacing_of
from launcher.plan.tensors import split_of
from launcher.plan.told import cost_told, time_told
from launcher.spec.job import JobSpec
from launcher.spec.places import Finding, Places
from launcher.spec.stages import Ppo, Stage
from launcher.units import bytes_text


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
    _raise_if_any(_disk_findings(case), places)
    disk_bytes = _disk_bytes(case)
    return Plan(job=job.name, machine=machine, calibration=rates.calibration, stages=stages, disk_bytes=disk_bytes)


def check_plan(job: JobSpec, *, machine: Machine, shape: ModelShape, places: Places, rates: Rates) -> None:
    """LauncherError exactly where make_plan has one. No plan is looked for: the first layout that fits is enough."""
    case = Case(job=job, machine=machine, shape=shape)
    _raise_if_any(find_illegal(case), places)
    _raise_if_any([finding for spot in spots_of(case) for finding in _misfits(spot, rates)], places)
    _raise_if_any(_disk_findings(case), places)


def _raise_if_any(findings: Sequence[Finding], places: Places) -> None:
    if findings:
        raise LauncherError(places.problems(findings))


def _stage(spot: Spot, rates: Rates) -> StagePlan | Finding:
    job, stage = spot.job, spot.stage
    load, pinned = load_of(job, stage, spot.shape), pinned_of(job, stage)
    grounds, illegal = grounds_of(spot, rates)
    if not grounds:
        return _no_degrees(spot, illegal)
    speeds, scale = rates.speeds(spot.case.machine), rates.scale(grounds[0].precision)
    clock = Clock(load, speeds, rollout=_rollout(job, stage), scale=scale.time) if speeds else None
    found = search(load, grounds, pinned, clock, objective=job.objective)
    if isinstance(found, Short):
        return _no_plan(spot, found, rates)
    return _stage_plan(spot, load, replace(found, rejected=(*found.rejected, *merged(illegal))), rates)


def _misfits(spot: Spot, rates: Rates) -> Iterator[Finding]:
    """What _stage would say instead of planning the stage."""
    load, pinned = load_of(spot.job, spot.stage, spot.shape), pinned_of(spot.job, spot.stage)
    grounds, illegal = grounds_of(spot, rates)
    if not grounds:
        yield _no_degrees(spot, illegal)
    elif not fits_anywhere(load, grounds, pinned) and isinstance(found := search(load, grounds, pinned, None), Short):
        yield _no_plan(spot, found, rates)


def _rollout(job: JobSpec, stage: Stage) -> Rollout | None:
    if not isinstance(stage, Ppo):
        return None
    return Rollout(prompts=rollout_of(job, stage), steps=updates_of(job, stage))


def _stage_plan(spot: Spot, load: Load, found: Found, rates: Rates) -> StagePlan:
    stage, fit = spot.stage, found.chosen.fit
    ground, layout = fit.ground, fit.layout
    updates = updates_of(spot.job, stage)
    time = time_told(load, ground, found.chosen.time, rates, num_steps=stage.steps * updates if stage.steps else None)
    scale = rates.scale(layout.precision)
    spacing = spacing_of(stage, step_s=updates * time.step_s if time else None)
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
        checkpoint_every=spacing.steps,
        num_params=load.num_params,
        num_trainable=load.num_trainable,
        memory=replace(fit.memory, disk_bytes=_stage_disk_bytes(load, stage, layout.precision)),
        time=time,
        cost=cost_told(time, ground, rates),
        reasons=(
            *reasons.reasons_of(spot, load, found, spacing),
            *reasons.scaled(scale, layout.precision),
            *reasons.disturbed(rates.disturbed),
        ),
        rejected=found.rejected,
        pareto=found.front,
        judged=found.judged,
        hidden=spot.shape.hidden,
        largest_shard=split_of(
            load.shape, load.kind, load.adapter, stage=0, tp=ground.tp, pp=ground.pp, ranks=ground.shards
        ).largest_shard,
        time_scale=scale.time,
        memory_scale=scale.memory,
    )


def _stage_disk_bytes(load: Load, stage: Stage, precision: Precision) -> int:
    return stage.keep * checkpoint_bytes(load) + artifact_bytes(load, precision=precision)


def _kept_bytes(case: Case) -> list[int]:
    """Of each stage, at its end."""
    job, machine = case.job, case.machine
    return [
        _stage_disk_bytes(load_of(job, stage, case.shape), stage, precision_of(job, stage, machine)) for stage in job.stages
    ]


def _disk_bytes(case: Case) -> int:
    """All stages keep their last checkpoints, and a new checkpoint is complete before an old one is removed."""
    writing = max(checkpoint_bytes(load_of(case.job, stage, case.shape)) for stage in case.job.stages)
    return sum(_kept_bytes(case)) + writing


def _disk_findings(case: Case) -> list[Finding]:
    free = case.machine.disk_free_bytes
    if free is None or (need := _disk_bytes(case)) <= free:
        return []
    place = "where the run folder lies" + (f" on {case.machine.disk_host}" if case.machine.disk_host else "")
    what = f"{bytes_text(need)} of checkpoints and artifacts, {bytes_text(free)} are free {place}"
    kept = _kept_bytes(case)
    largest = case.job.stages[kept.index(max(kept))].stage_name
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


def _no_plan(spot: Spot, short: Short, rates: Rates) -> Finding:
    path = ("stages", spot.index)
    return Finding(code="E210", path=path, what=f"no plan fits: {_short_text(short)}", hint=smallest_change(spot, rates))


def _short_text(short: Short) -> str:
    """What there is too little of: of the host's memory where a rank's would be enough."""
    least, on_host = short.least.memory, short.on_host
    if on_host is None:
        beside = "" if host_fits(short.least) else f"; and {short_of(short.least)}"
        return f"at least {bytes_text(least.peak_bytes)} a rank, {bytes_text(least.limit_bytes)} are there{beside}"
    there, rank = on_host.ground.machine.host_memory_bytes, bytes_text(least.limit_bytes)
    need = f"what fits into the {rank} of a rank keeps at least {bytes_text(host_bytes(on_host))} in its host's memory"
    return f"{need}, {bytes_text(there)} are there"
