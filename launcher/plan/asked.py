"""(job, stage) -> what the user asked of the plan, with the plain defaults filled in. DERIVE: lookups, no choice.

Pinned values stay None where the plan may choose.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.plan import Checkpointing, Machine, Place
from launcher.plan.shape import ModelShape
from launcher.spec.chain import effective_batch
from launcher.spec.data import DEFAULT_MAX_TOKENS
from launcher.spec.job import JobSpec
from launcher.spec.places import FieldPath
from launcher.spec.stages import DEFAULT_GLOBAL_SEQS, BatchSpec, Ppo, Stage

QUANTIZED_KINDS = ("sft", "reward", "dpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The `parallel` block; None: the plan chooses. Not a ParallelSpec: making one costs Pydantic 25 ms in each command."""

    degrees: tuple[tuple[str, int], ...] = ()
    zero: int | None = None
    checkpointing: Checkpointing | None = None
    optimizer: Place | None = None
    parameters: Place | None = None


FREE = Asked()


def parallel_of(job: JobSpec) -> Asked:
    """`parallel: auto` pins nothing; an offload block pins both places."""
    spec = job.parallel
    if spec is None:
        return FREE
    return Asked(
        degrees=(("tensor", spec.tensor), ("pipeline", spec.pipeline), ("sequence", spec.sequence)),
        zero=spec.zero,
        checkpointing=spec.checkpointing,
        optimizer=spec.offload.optimizer if spec.offload else None,
        parameters=spec.offload.parameters if spec.offload else None,
    )


def world_of(job: JobSpec, machine: Machine) -> int:
    """Ranks of every stage: what the job asks, or all the machine has."""
    return job.cluster.slots or machine.slots


def batch_of(job: JobSpec, stage: Stage) -> BatchSpec:
    return effective_batch(job, stage)


def global_of(job: JobSpec, stage: Stage) -> int:
    return batch_of(job, stage).global_seqs or DEFAULT_GLOBAL_SEQS


def batch_path(job: JobSpec, index: int, field: str) -> FieldPath:
    """Where `global` or `micro` of stage `index` is written: in the stage, or once for the job."""
    own = job.stages[index].batch
    return ("stages", index, "batch", field) if own and getattr(own, f"{field}_seqs") else ("batch", field)


def answer_tokens(stage: Stage) -> int:
    """Tokens that a stage generates behind its rows."""
    return stage.max_new_tokens if isinstance(stage, Ppo) else 0


def max_tokens_of(stage: Stage, shape: ModelShape) -> int:
    """Longest row (ppo: prompt): as asked, or 1024, or what the model's positions leave."""
    return stage.data.max_tokens or min(DEFAULT_MAX_TOKENS, shape.positions - answer_tokens(stage))


def rollout_of(job: JobSpec, stage: Stage) -> int:
    """Prompts per ppo iteration over all ranks; 0 for other kinds."""
    return (stage.rollout or 2 * global_of(job, stage)) if isinstance(stage, Ppo) else 0


def is_quantized(job: JobSpec, kind: str) -> bool:
    """nf4 holds for sft, reward and dpo. ppo trains its adapter on the merged, unquantized model it is handed."""
    return job.model.quantize is not None and kind in QUANTIZED_KINDS
