"""A GPU that is not in the catalogue, by its numbers. ASK."""

from __future__ import annotations

from pydantic import Field

from launcher.spec.base import Block, Name


class GpuSpec(Block):
    """Numbers of its data sheet. Bandwidths in GB/s (1e9 bytes) and one direction."""

    name: Name = Field("custom", description="what it is called in plans")
    memory_gib: float = Field(gt=0, le=10_000, description="what a process can allocate")
    tflops: float = Field(gt=0, le=100_000, description="dense peak in bf16 or fp16, never the sparse one")
    memory_gbs: float = Field(gt=0, le=100_000, description="bandwidth of its memory")
    nvlink_gbs: float = Field(0, ge=0, le=10_000, description="to all peers together; 0: peers are reached over PCIe")
    nvlink_gpus: int = Field(8, ge=1, le=1024, description="GPUs that NVLink joins")
    pcie_gbs: float = Field(31, gt=0, le=1000, description="to the host")
    nic_gbs: float = Field(3, gt=0, le=1000, description="of the network, for each GPU")
    multiprocessors: int = Field(108, ge=1, le=10_000, description="that share the tiles of a matrix product")
    watts: float = Field(400, gt=0, le=10_000, description="power limit")
    usd_per_hour: float = Field(0, ge=0, le=10_000, description="0: no cost is told")
    bf16: bool = Field(True, description="whether it computes in bf16")
