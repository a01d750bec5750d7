"""(a stage's plan, the rows as they were) -> its step time and peak predicted again, without scales. DERIVE, pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.plan.cost.of_stage import Clock
from launcher.plan.cost.rates import Rates
from launcher.plan.grounds import load_of, pinned_of
from launcher.plan.ladder import Ground, Rung, layout_of
from launcher.plan.layout import Layout
from launcher.plan.memory import memory_of
from launcher.plan.plan import Machine, StagePlan
from launcher.plan.shape import ModelShape
from launcher.spec.job import JobSpec
from launcher.spec.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    step_s: float | None  # None: the device's speed is not known
    peak_bytes: int


def replay(
    job: JobSpec, stage: Stage, plan: StagePlan, *, machine: Machine, shape: ModelShape, rates: Rates, row_tokens: float
) -> Replayed:
    """`row_tokens`: of a row of the data, padding counted; a preference pair is one row of two sequences. Not for ppo."""
    load = load_of(job, stage, shape)
    load = replace(load, row_tokens=max(1, round(row_tokens / load.sequences_per_row)))
    layout = _layout(job, stage, plan, machine)
    speeds = rates.speeds(machine)
    return Replayed(
        step_s=Clock(load, speeds).time(layout).step_s if speeds else None,
        peak_bytes=memory_of(load, layout, limit_bytes=machine.memory_bytes).peak_bytes,
    )


def _layout(job: JobSpec, stage: Stage, plan: StagePlan, machine: Machine) -> Layout:
    """The one that was planned."""
    ground = Ground(
        machine=machine,
        dp=plan.dp,
        tp=plan.tp,
        pp=plan.pp,
        sp=plan.sp,
        precision=plan.precision,
        global_batch=plan.global_batch,
    )
    rung = Rung(
        zero=plan.zero,
        checkpointing=plan.checkpointing,
        offload_optimizer=plan.offload_optimizer,
        offload_parameters=plan.offload_parameters,
    )
    return layout_of(ground, rung, plan.micro_batch, pinned_of(job, stage))
