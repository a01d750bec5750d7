"""JobSpec: all that a user says, frozen. ASK: no I/O, no choice, no derived value. Fields across blocks: spec/chain.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from launcher.spec.base import Auto, Block, EnvName, Name, NotBool, Text
from launcher.spec.gpu import GpuSpec
from launcher.spec.model import ModelSpec
from launcher.spec.parallel import ParallelSpec
from launcher.spec.stages import BatchSpec, Stage


class ClusterSpec(Block):
    """Where the job runs."""

    backend: Literal["local", "ssh", "slurm", "kubernetes", "mpi"] = Field("local", description="how ranks are started")
    hostfile: Text | None = Field(None, description="DeepSpeed hostfile, `host slots=8` a line; local: this machine")
    slots: Annotated[int | None, Auto] = Field(
        None, ge=1, le=1024, description="ranks on this machine; None: its GPUs, or one CPU process for each core, at most 2"
    )
    nodes: int | None = Field(
        None, ge=1, le=100_000, description="hosts, each with `slots` ranks, to plan away from the cluster; None: one"
    )
    gpu: Text | GpuSpec | None = Field(
        None, description="GPU name of the catalogue, or its numbers, to plan away from the cluster"
    )
    prices: Text | None = Field(None, description="YAML file with prices, power and carbon; None: the catalogue's and means")
    env: dict[EnvName, Text] = Field(default_factory=dict, description="environment of every rank; not for secrets")


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
