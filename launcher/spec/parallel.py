"""The `parallel` block of a job or of one stage: degrees, ZeRO, offload, checkpointing. ASK: None means the plan chooses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from launcher.spec.base import Auto, Block, NotBool, Text

Balance = Literal["parameters", "time"]


class Offload(Block):
    """Where optimizer states and parameters rest between their uses."""

    optimizer: Literal["none", "cpu", "nvme"] = Field("none", description="needs ZeRO 1 or higher; nvme needs 3")
    parameters: Literal["none", "cpu", "nvme"] = Field("none", description="needs ZeRO 3; nvme needs bf16 too")
    nvme_path: Text | None = Field(None, description="folder on a local NVMe disk, the same on every node; nvme needs it")
    ratio: float | None = Field(
        None, gt=0, le=1, description="share of the optimizer's work on the CPU (twin flow), ZeRO 3; None: all of it"
    )


class ParallelSpec(Block):
    """Degrees. data parallel = ranks / (tensor x pipeline x sequence)."""

    tensor: int = Field(1, ge=1, le=1024, description="ranks that share each matrix")
    pipeline: int = Field(1, ge=1, le=1024, description="groups of layers, each on its own rank")
    sequence: int = Field(1, ge=1, le=1024, description="ranks that share each sequence (Ulysses)")
    balance: Balance = Field(
        "parameters",
        description="what the pipeline's groups of layers are made equal in; time is measured when the stage starts",
    )
    zero: Annotated[Literal[0, 1, 2, 3] | None, Auto, NotBool] = Field(None, description="ZeRO stage; None: the plan chooses")
    offload: Annotated[Offload | None, Auto] = Field(None, description="None: the plan chooses")
    checkpointing: Annotated[Literal["none", "full", "offload"] | None, Auto] = Field(
        None,
        description="activation checkpointing; offload: checkpoints rest in host memory, for long rows; None: the plan chooses",
    )
    hpz: int | None = Field(
        None, ge=2, le=1024, description="ranks that hold a second copy of the parameters between them (ZeRO++ hpZ), ZeRO 3"
    )
    quantized_weights: bool = Field(False, description="weights are gathered in 8 bit (ZeRO++ qwZ), ZeRO 3 on GPUs")
    quantized_gradients: bool = Field(
        False, description="gradients are reduced in 4 bit (ZeRO++ qgZ), ZeRO 3 on GPUs of several nodes"
    )


def _auto_is_free(value: Any) -> Any:
    return {} if value == "auto" else value


# In a stage an absent block is the job's; `auto` leaves the choice for this stage to the plan all the same.
StageAuto = BeforeValidator(_auto_is_free)
