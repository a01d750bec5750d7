"""Constants: the numbers of the time model that only measurements can tell. DERIVE, a table.

Every value was fitted at once on the published step times in benchmarks/data (`python -m benchmarks.planner --fit` prints them
again), each held near a value that physics or a vendor gives, as strongly as that value is known. Devices without a published
row keep the value they started from. What can be counted is not here: see stack.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    # share of the dense peak that a large matrix product reaches
    matrix_volta: float = 0.72
    matrix_turing: float = 0.45  # limited by 70 W
    matrix_ampere: float = 0.8326
    matrix_ampere_pcie: float = 0.70
    matrix_ada: float = 0.62
    matrix_hopper: float = 0.7047
    matrix_hopper_pcie: float = 0.62
    matrix_blackwell: float = 0.6538
    matrix_blackwell_ultra: float = 0.7897
    matrix_cdna3: float = 0.48
    matrix_cpu: float = 1.0  # the peak of a CPU is the speed that calibration measured
    half_depth: float = 479.6  # inner size at which a product reaches half of that, on a device of 108 multiprocessors
    fp8_gain: float = 1.76  # of the 2 that the peak promises
    fp4_share: float = 0.6291  # of the 4 or 6 that the peak promises
    align_64: float = 0.8107  # a size that is no multiple of 64 elements
    align_8: float = 0.5087  # of 8
    memory_share: float = 0.7724  # of the memory bandwidth, element-wise kernels
    # share of the 16-bit peak that attention reaches, forward
    flash1: float = 0.3944
    flash2: float = 0.5298
    cudnn: float = 0.5576
    backward_attention: float = 0.7806  # of the forward share
    older_kernel: float = 0.5375  # flash 1 and 2 on Hopper and newer, which they were not written for
    batched_product: float = 0.4942  # eager attention's two products
    softmax_passes: float = 6.016  # of eager attention over its scores, forward
    elements: float = 1.039  # element-wise traffic / what counting the operations gives
    loss_bytes: float = 15.62  # moved for each logit, forward and backward
    # seconds the host needs to launch one block's forward pass
    launch_fused: float = 2e-4
    launch_eager: float = 0.00248
    launch_adapter: float = 0.001561
    launch_packed: float = 0.002181
    launch_zero3: float = 0.003758
    launch_cpu: float = 1e-4
    unpack_gptq: float = 9.693  # passes over the weights of a 4-bit base, each of 2.6 bytes a weight at 35 % of the bandwidth
    unpack_nf4: float = 3.0
    # links
    nvlink_share: float = 0.7692
    nic_share: float = 0.7264
    pcie_share: float = 0.75
    tensor_exposed: float = 0.8637  # share of tensor-parallel traffic that nothing hides
    tensor_exposed_overlapped: float = 0.4233  # where the stack overlaps it
    data_exposed: float = 0.3956
    shard_exposed: float = 0.3055  # of the shorter of compute and ZeRO-3 traffic, each slowing the other
    shard_interference: float = 0.1548
    shard_scale: float = 288.1  # ranks at which ZeRO-3's collectives run at half speed
    hop_exposed: float = 0.5328  # of a pipeline's sends
    collective_s: float = 4e-5
    # software
    deepspeed: float = 1.121  # the engine's hooks, on every kernel
    deepspeed_zero3: float = 1.172
    instruction_s: float = 0.004033  # DeepSpeed's pipeline engine, for each micro-batch
    optimizer_bytes: float = 28.21  # moved for each parameter of the rank's share
    step_s: float = 0.005264
    # the host: 7e9 parameters x 28 bytes took more than 4 s beside 4 A100 (DeepSpeed ZeRO-Offload, published)
    host_gbs: float = 47.0
    nvme_gbs: float = 3.0

    def matrix(self, generation: str) -> float:
        """Share of the dense peak that a large product reaches on a device of this generation."""
        share: float = getattr(self, f"matrix_{generation}")
        return share


PUBLISHED = Constants()
