"""Plan: what will be done and why, one StagePlan per stage. Frozen results, their JSON is docs' contract (`plan --json`).

DERIVE, nouns only: made by plan/make.py. A value that is not modelled is None and prints as null, never 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
Checkpointing = Literal["none", "full", "offload"]  # offload: full, and what is kept rests in host memory
Place = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The hosts of the cluster, all alike, as facts: an argument of the planner, never looked up by it."""

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
    nodes: int = 1
    hosts: tuple[str, ...] = ()  # their names, where ranks are started over a network
    nvlink: bool | None = None  # whether all GPUs have links that are up; None: as the catalogue says
    pcie_gbs: float | None = None  # of the slowest GPU's slot; None: as the catalogue says
    network_gbs: float | None = None  # of all cards of a host together; None: as the catalogue says
    disk_host: str | None = None  # of several hosts, the one with the least free there

    @property
    def world(self) -> int:
        return self.nodes * self.slots

    @classmethod
    def of_cpus(
        cls,
        *,
        slots: int,
        memory_bytes: int,
        cores: int,
        disk_free_bytes: int | None,
        nodes: int = 1,
        hosts: tuple[str, ...] = (),
    ) -> Machine:
        """Hosts of `memory_bytes` each whose ranks are CPU processes."""
        return cls(
            device="cpu",
            slots=slots,
            gpu=None,
            memory_bytes=memory_bytes // slots,
            host_memory_bytes=memory_bytes,
            disk_free_bytes=disk_free_bytes,
            cores=cores,
            bf16=True,
            fp16=False,
            nodes=nodes,
            hosts=hosts,
        )


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
    nvme_bytes: int = 0  # of one rank's swap files


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """Seconds of one optimizer step by part, and what follows from them. None: the device's speed is not known.

    `mfu` counts attention in full, as PaLM and Megatron do; `mfu_causal` the half that a causal model needs.
    """

    step_s: float
    parts: dict[str, float]
    sent: dict[str, float]  # what communication consists of
    tokens_per_s: float
    mfu: float
    mfu_causal: float
    num_steps: int | None  # of the optimizer over the stage; None: known when the data is prepared
    beside_s: dict[str, float]  # what the stage does once, beside its steps
    total_s: float | None  # num_steps x step_s and all of beside_s, for rows of full length
    low_s: float  # 80 % of the true step times lie between the two, as far as published ones tell
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of the stage; None for what cannot be told."""

    currency: str
    amount: float | None
    kwh: float | None
    co2_kg: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A plan that fits and was not taken, or that was: where it lies between time and memory."""

    plan: str
    world: int
    step_s: float
    peak_bytes: int
    p_fit: float


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
    largest_shard: int  # elements of the largest tensor's part under ZeRO 3: sizes its buffers for parameters on NVMe
    memory: Memory
    time: Time | None = None
    cost: Cost | None = None
    reasons: tuple[Reason, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    pareto: tuple[Option, ...] = ()  # no other plan is both faster and smaller; fastest first
    judged: int = 0  # candidates
    time_scale: float = 1.0  # measured / predicted of finished runs, which time and memory are multiplied by
    memory_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    job: str
    machine: Machine
    calibration: str = "catalogue"
    stages: tuple[StagePlan, ...] = field(default=())
    disk_bytes: int = 0  # at the peak, of what all stages keep where the run folder lies

    def stage(self, name: str) -> StagePlan:
        return next(stage for stage in self.stages if stage.name == name)

    def as_dict(self) -> dict[str, object]:
        """The object that `plan --json` promises."""
        return {
            "schema": 1,
            "job": self.job,
            "calibration": self.calibration,
            "machine": asdict(self.machine),
            "stages": [_stage_dict(stage) for stage in self.stages],
        }


def _stage_dict(stage: StagePlan) -> dict[str, object]:
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
            "nvme_bytes": stage.memory.nvme_bytes,
        },
        "time": asdict(stage.time) if stage.time else dict.fromkeys(one.name for one in fields(Time)),
        "cost": asdict(stage.cost) if stage.cost else dict.fromkeys(one.name for one in fields(Cost)),
        "reasons": [asdict(reason) for reason in stage.reasons],
        "rejected": [asdict(rejected) for rejected in stage.rejected],
        "pareto": [asdict(option) for option in stage.pareto],
        "judged": stage.judged,
        "scale": {"time": stage.time_scale, "memory": stage.memory_scale},
    }
