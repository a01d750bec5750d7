"""(job, stage) -> what the user asked of the plan, with the plain defaults filled in. DERIVE: lookups, no choice.

Pinned values stay None where the plan may choose.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.plan import Checkpointing, Machine, Place, Precision
from launcher.plan.shape import ModelShape
from launcher.spec.chain import effective_batch, effective_parallel
from launcher.spec.data import DEFAULT_MAX_TOKENS
from launcher.spec.job import JobSpec
from launcher.spec.parallel import Balance
from launcher.spec.places import FieldPath
from launcher.spec.stages import DEFAULT_GLOBAL_SEQS, BatchSpec, Ppo, Stage

QUANTIZED_KINDS = ("sft", "reward", "dpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The `parallel` block; None: the plan chooses. Not a ParallelSpec: making one costs Pydantic 25 ms in each command."""

    tensor: int = 1
    pipeline: int = 1
    sequence: int = 1
    balance: Balance = "parameters"
    zero: int | None = None
    checkpointing: Checkpointing | None = None
    optimizer: Place | None = None
    parameters: Place | None = None
    nvme_path: str | None = None
    ratio: float | None = None
    hpz: int | None = None
    quantized_weights: bool = False
    quantized_gradients: bool = False
    searches: bool = False  # the plan chooses the degrees

    @property
    def replica(self) -> int:
        """Ranks that work on the same rows."""
        return self.tensor * self.pipeline * self.sequence

    @property
    def only_at_zero_3(self) -> tuple[str, ...]:
        """Settings that are given and that DeepSpeed reads at ZeRO 3 only."""
        given = {
            "offload.optimizer": self.optimizer == "nvme",
            "offload.ratio": self.ratio is not None,
            "hpz": self.hpz is not None,
            "quantized_weights": self.quantized_weights,
            "quantized_gradients": self.quantized_gradients,
        }
        return tuple(name for name, here in given.items() if here)

    @property
    def settled_zero(self) -> int | None:
        """The ZeRO stage as asked, else the one that everything else leaves; None: the plan chooses."""
        if self.zero is not None:
            return self.zero
        return 1 if self.pipeline > 1 else 3 if self.only_at_zero_3 else None


FREE = Asked(searches=True)


def parallel_of(job: JobSpec, stage: Stage) -> Asked:
    """`parallel: auto` pins nothing; an offload block pins both places."""
    spec = effective_parallel(job, stage)
    if spec is None:
        return FREE
    offload = spec.offload
    return Asked(
        tensor=spec.tensor,
        pipeline=spec.pipeline,
        sequence=spec.sequence,
        balance=spec.balance,
        zero=spec.zero,
        checkpointing=spec.checkpointing,
        optimizer=offload.optimizer if offload else None,
        parameters=offload.parameters if offload else None,
        nvme_path=offload.nvme_path if offload else None,
        ratio=offload.ratio if offload else None,
        hpz=spec.hpz,
        quantized_weights=spec.quantized_weights,
        quantized_gradients=spec.quantized_gradients,
    )


def parallel_path(job: JobSpec, index: int, *fields: str) -> FieldPath:
    """Where a field of the layout of stage `index` is written: in the stage, or once for the job."""
    return ("stages", index, "parallel", *fields) if job.stages[index].parallel is not None else ("parallel", *fields)


def world_of(job: JobSpec, machine: Machine) -> int:
    """Ranks of every stage: what the job asks of each host, or all the machine has."""
    return (job.cluster.slots or machine.slots) * machine.nodes


def precision_of(job: JobSpec, stage: Stage, machine: Machine) -> Precision:
    """As asked; else bf16 where the GPU has it, fp16 on older ones, fp32 on a CPU and where ZeRO 0 is asked."""
    if job.precision:
        return job.precision
    if machine.device == "cpu" or parallel_of(job, stage).zero == 0:
        return "fp32"
    return "bf16" if machine.bf16 else "fp16"


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


def updates_of(job: JobSpec, stage: Stage) -> int:
    """Optimizer steps of one step of the stage: a ppo iteration has several."""
    return rollout_of(job, stage) // global_of(job, stage) * stage.ppo_epochs if isinstance(stage, Ppo) else 1


def is_quantized(job: JobSpec, kind: str) -> bool:
    """nf4 holds for sft, reward and dpo. ppo trains its adapter on the merged, unquantized model it is handed."""
    return job.model.quantize is not None and kind in QUANTIZED_KINDS
