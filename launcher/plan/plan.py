"""Plan: what will be done and why, one StagePlan per stage. Frozen results, their JSON is docs' contract (`plan --json`).

DERIVE, nouns only: made by plan/make.py. A value that is not modelled is None and prints as null, never 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
Checkpointing = Literal["none", "full", "offload"]  # offload: full, and what is kept rests in host memory
Place = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One host of the cluster, as facts: an argument of the planner, never looked up by it."""

    device: Literal["cuda", "cpu"]
    slots: int  # ranks per host
    gpu: str | None  # catalogue name, None on CPU
    memory_bytes: int  # usable by one rank: of its GPU, or its share of the host
    host_memory_bytes: int
    disk_free_bytes: int | None  # where the run folder lies; None: not known
    cores: int
    bf16: bool
    fp16: bool
    devices: tuple[int, ...] = ()  # numbers of the GPUs that are meant, as the driver counts; empty on CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a number is what it is. `code` is short and stable: `zero.smallest_that_fits`."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    plan: str
    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the fullest GPU (or CPU rank), by part, at the peak."""

    peak_bytes: int
    limit_bytes: int
    p_fit: float | None
    parts: dict[str, int]
    host_peak_bytes: int | None
    disk_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """All degrees and sizes of one stage. world = dp x tp x pp x sp; global = micro x grad_accum x dp."""

    name: str
    kind: str
    world: int
    dp: int
    tp: int
    pp: int
    sp: int
    zero: int
    offload_optimizer: Place
    offload_parameters: Place
    precision: Precision
    checkpointing: Checkpointing
    micro_batch: int
    grad_accum: int
    global_batch: int
    max_tokens: int
    checkpoint_every: int
    num_params: int
    num_trainable: int
    hidden: int  # width of the model: sizes DeepSpeed's buckets
    memory: Memory
    reasons: tuple[Reason, ...] = ()
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    job: str
    machine: Machine
    stages: tuple[StagePlan, ...] = field(default=())

    def stage(self, name: str) -> StagePlan:
        return next(stage for stage in self.stages if stage.name == name)

    def as_dict(self) -> dict[str, object]:
        """The object that `plan --json` promises."""
        return {
            "schema": 1,
            "job": self.job,
            "calibration": "catalogue",
            "machine": asdict(self.machine),
            "stages": [_stage_dict(stage) for stage in self.stages],
        }


def _stage_dict(stage: StagePlan) -> dict[str, object]:
    nothing_yet = dict.fromkeys(("step_s", "parts", "tokens_per_s", "mfu", "total_s"))
    return {
        "name": stage.name,
        "kind": stage.kind,
        "world": stage.world,
        "dp": stage.dp,
        "tp": stage.tp,
        "pp": stage.pp,
        "sp": stage.sp,
        "zero": stage.zero,
        "offload": {"optimizer": stage.offload_optimizer, "parameters": stage.offload_parameters},
        "precision": stage.precision,
        "checkpointing": stage.checkpointing,
        "micro_batch": stage.micro_batch,
        "grad_accum": stage.grad_accum,
        "global_batch": stage.global_batch,
        "max_tokens": stage.max_tokens,
        "checkpoint_every": stage.checkpoint_every,
        "parameters": stage.num_params,
        "trainable_parameters": stage.num_trainable,
        "memory": {
            "gpu_peak_bytes": stage.memory.peak_bytes,
            "gpu_limit_bytes": stage.memory.limit_bytes,
            "p_fit": stage.memory.p_fit,
            "parts": stage.memory.parts,
            "host_peak_bytes": stage.memory.host_peak_bytes,
            "disk_bytes": stage.memory.disk_bytes,
        },
        "time": nothing_yet,
        "cost": dict.fromkeys(("currency", "amount", "kwh", "co2_kg")),
        "reasons": [asdict(reason) for reason in stage.reasons],
        "rejected": [asdict(rejected) for rejected in stage.rejected],
    }
