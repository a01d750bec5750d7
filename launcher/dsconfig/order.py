"""(JobSpec, Plan, stage name) -> StageOrder: the plan's numbers for the ranks of one stage, with paths inside the run folder.

DERIVE, pure.
"""

from __future__ import annotations

from launcher.plan.asked import parallel_of
from launcher.plan.plan import Plan
from launcher.rundir.order import StageOrder
from launcher.spec.chain import parent_of
from launcher.spec.job import JobSpec
from launcher.spec.stages import Ppo

BASE_MODEL = "base/model"
TOKENIZER = "base/tokenizer"


def artifact_of(stage_name: str) -> str:
    """Where a stage hands on its model, below the run folder."""
    return f"stages/{stage_name}/artifact"


def stage_order(job: JobSpec, plan: Plan, stage_name: str) -> StageOrder:
    """What the ranks of `stage_name` are told besides the job file."""
    stage, planned = next(spec for spec in job.stages if spec.stage_name == stage_name), plan.stage(stage_name)
    parent = parent_of(job, stage)
    return StageOrder(
        stage=stage_name,
        kind=planned.kind,
        world=planned.world,
        dp=planned.dp,
        tp=planned.tp,
        pp=planned.pp,
        sp=planned.sp,
        balance=parallel_of(job, stage).balance,
        device=plan.machine.device,
        precision=planned.precision,
        tf32=job.tf32,
        checkpointing=planned.checkpointing,
        zero=planned.zero,
        micro_batch=planned.micro_batch,
        grad_accum=planned.grad_accum,
        max_tokens=planned.max_tokens,
        checkpoint_every=planned.checkpoint_every,
        model=artifact_of(parent.stage_name) if parent else BASE_MODEL,
        tokenizer=TOKENIZER,
        reward_model=artifact_of(stage.reward) if isinstance(stage, Ppo) else None,
        model_kind="reward" if planned.kind == "reward" else "causal",
    )
