"""A GPU that is not in the catalogue, by its numbers. ASK."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.spec.base import Block, Name

GpuGeneration = Literal[
    "volta", "turing", "ampere", "ampere_pcie", "ada", "hopper", "hopper_pcie", "blackwell", "blackwell_ultra", "cdna3"
]
WITHOUT_BF16: tuple[GpuGeneration, ...] = ("volta", "turing")


class GpuSpec(Block):
    """Numbers of its data sheet. Bandwidths in GB/s (1e9 bytes) and one direction."""

    name: Name = Field("custom", description="what it is called in plans")
    memory_gib: float = Field(gt=0, le=10_000, description="what a process can allocate")
    tflops: float = Field(gt=0, le=100_000, description="dense peak in bf16 or fp16, never the sparse one")
    memory_gbs: float = Field(gt=0, le=100_000, description="bandwidth of its memory")
    generation: GpuGeneration | None = Field(
        None,
        description="architecture whose measured shares of the peak are taken, `_pcie` for cards of less power; None: cautious"
        " shares, which most GPUs exceed",
    )
    nvlink_gbs: float = Field(0, ge=0, le=10_000, description="to all peers together; 0: peers are reached over PCIe")
    nvlink_gpus: int | None = Field(None, ge=2, le=1024, description="GPUs that NVLink joins; goes with nvlink_gbs")
    pcie_gbs: float = Field(31, gt=0, le=1000, description="to the host")
    nic_gbs: float = Field(3, gt=0, le=1000, description="of the network, for each GPU")
    multiprocessors: int = Field(108, ge=1, le=10_000, description="that share the tiles of a matrix product")
    watts: float = Field(400, gt=0, le=10_000, description="power limit")
    usd_per_hour: float = Field(0, ge=0, le=10_000, description="0: no cost is told")
    bf16: bool | None = Field(None, description="whether it computes in bf16; None: yes, unless its generation does not")
