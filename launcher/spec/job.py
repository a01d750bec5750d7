"""JobSpec: all that a user says, frozen. ASK: no I/O, no choice, no derived value. Fields across blocks: spec/chain.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launcher.spec.base import Auto, Block, Name, NotBool
from launcher.spec.cluster import ClusterSpec
from launcher.spec.model import ModelSpec
from launcher.spec.parallel import ParallelSpec
from launcher.spec.stages import BatchSpec, Stage


class JobSpec(Block):
    """One job: a model, a cluster, and stages in the order they run."""

    spec_version: Annotated[Literal[1], NotBool] = Field(1, description="version of this format")
    name: Name = Field(description="lower-case letters, digits, - and _")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="of everything random")
    model: ModelSpec = Field(description="`source`, a model to start from, or `new`, one to draw")
    cluster: ClusterSpec = ClusterSpec.model_construct()
    parallel: Annotated[ParallelSpec | None, Auto] = Field(None, description="None: the plan chooses")
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Auto] = Field(None, description="None: the plan chooses")
    tf32: bool = Field(
        False,
        description="fp32 products on GPUs of Ampere or newer with 10 bits after the point: faster, and no longer the fp32 that"
        " was asked for, so it has to be said",
    )
    batch: BatchSpec = BatchSpec.model_construct()
    objective: Literal["speed", "cost", "memory"] = Field(
        "speed",
        description="what the plan chooses by: the shortest time; the fewest GPU hours, on fewer ranks if they do it; or the"
        " most memory left where that is at most a quarter slower",
    )
    tensorboard: bool = Field(True, description="write TensorBoard event files")
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=64, description="run in this order")
