"""Constants: the numbers of the time model that only measurements can tell. DERIVE, a table.

The values were fitted together on the published step times in benchmarks/data (`python -m benchmarks.planner --fit` prints them
again), each held near a value that physics or a vendor gives, as strongly as that value is known. Devices without a published
row keep the value they started from. What can be counted is not here: see stack.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    # share of the dense peak that a large matrix product reaches
    matrix_volta: float = 0.72
    matrix_turing: float = 0.45  # limited by 70 W
    matrix_ampere: float = 0.8344
    matrix_ampere_pcie: float = 0.70
    matrix_ada: float = 0.62
    matrix_hopper: float = 0.705
    matrix_hopper_pcie: float = 0.62
    matrix_blackwell: float = 0.6542
    matrix_blackwell_ultra: float = 0.7901
    matrix_cdna3: float = 0.48
    matrix_unknown: float = 0.62  # a GPU given by its numbers: eight of the ten above reach it
    matrix_cpu: float = 1.0  # the peak of a CPU is the speed that calibration measured
    half_depth: float = 483  # inner size at which a product reaches half of that, on a device of 108 multiprocessors
    fp8_gain: float = 1.76  # of the 2 that the peak promises
    fp4_share: float = 0.6294  # of the 4 or 6 that the peak promises
    align_64: float = 0.8095  # a size that is no multiple of 64 elements
    align_8: float = 0.5155  # of 8
    memory_share: float = 0.7723  # of the memory bandwidth, element-wise kernels
    # share of the 16-bit peak that attention reaches, forward
    flash1: float = 0.3942
    flash2: float = 0.5294
    cudnn: float = 0.558
    backward_attention: float = 0.7805  # of the forward share
    older_kernel: float = 0.5379  # flash 1 and 2 on Hopper and newer, which they were not written for
    batched_product: float = 0.4952  # eager attention's two products
    softmax_passes: float = 6.014  # of eager attention over its scores, forward
    elements: float = 1.039  # element-wise traffic / what counting the operations gives
    loss_bytes: float = 15.62  # moved for each logit, forward and backward
    # seconds the host needs to launch one block's forward pass
    launch_fused: float = 2e-4
    launch_eager: float = 0.00248
    launch_adapter: float = 0.001561
    launch_packed: float = 0.002181
    launch_zero3: float = 0.003755
    launch_cpu: float = 1e-4
    unpack_gptq: float = 9.702  # passes over the weights of a 4-bit base, each of 2.6 bytes a weight at 35 % of the bandwidth
    unpack_nf4: float = 3.0
    # links
    nvlink_share: float = 0.7685
    nic_share: float = 0.7261
    pcie_share: float = 0.75
    tensor_exposed: float = 0.8577  # share of tensor-parallel traffic that nothing hides
    tensor_exposed_overlapped: float = 0.4237  # where the stack overlaps it
    data_exposed: float = 0.398
    shard_exposed: float = 0.3109  # of the shorter of compute and ZeRO-3 traffic, each slowing the other
    shard_interference: float = 0.1547
    shard_scale: float = 287.8  # ranks at which ZeRO-3's collectives run at half speed
    hop_exposed: float = 0.5334  # of a pipeline's sends
    collective_s: float = 4e-5
    gather_cost: float = 1.0  # seconds of an all-gather / those of a ring that sends as much
    scatter_cost: float = 1.0
    # software
    deepspeed: float = 1.117  # the engine's hooks, on every kernel
    deepspeed_zero3: float = 1.174
    instruction_s: float = 0.004024  # DeepSpeed's pipeline engine, for each micro-batch
    optimizer_bytes: float = 28.25  # moved for each parameter of the rank's share
    step_s: float = 0.005269
    # the host: 7e9 parameters x 28 bytes took more than 4 s beside 4 A100 (DeepSpeed ZeRO-Offload, published)
    host_gbs: float = 47.0
    nvme_gbs: float = 3.0

    def matrix(self, generation: str) -> float:
        """Share of the dense peak that a large product reaches on a device of this generation."""
        share: float = getattr(self, f"matrix_{generation}")
        return share


PUBLISHED = Constants()

# CPU ranks under gloo: nothing is hidden behind anything, and bandwidths are what reaches a rank. Nothing is published: the
# values are those of a core half as fast as one of EPYC 9004; `launcher calibrate` measures the lower half anew.
CPU = replace(
    PUBLISHED,
    memory_share=1.0,
    pcie_share=1.0,
    nic_share=1.0,
    tensor_exposed=1.0,
    data_exposed=1.0,
    shard_exposed=1.0,
    shard_interference=0.0,
    hop_exposed=1.0,
    deepspeed=1.0,
    deepspeed_zero3=1.0,
    flash2=0.47,
    backward_attention=1.0,
    elements=1.9,
    loss_bytes=51.0,
    optimizer_bytes=14.0,
    launch_cpu=5e-4,
    collective_s=3e-4,
    # gloo, measured: an all-gather takes as long as the all-reduce of the same vector, a reduce-scatter 2.7 times as long; a
    # ring would take half. Both are told beside the mean speed of all-reduce and all-gather.
    gather_cost=1.6,
    scatter_cost=4.0,
)
