"""A device of round numbers and software without losses: what is left of a time is arithmetic that can be done by hand."""

from __future__ import annotations

from dataclasses import replace

from launcher.plan.cost.constants import PUBLISHED
from launcher.plan.cost.links import Links
from launcher.plan.cost.stack import OURS
from launcher.plan.cost.step import StepTime, step_time
from launcher.plan.cost.work import Work
from launcher.plan.gpus import Gpu

TFLOPS, MEMORY_GBS, NVLINK_GBS, PCIE_GBS, NIC_GBS = 100, 1000, 100, 10, 5
IDEAL = replace(
    PUBLISHED,
    matrix_ampere=1.0,
    half_depth=0.0,
    align_64=0.5,
    align_8=0.25,
    memory_share=1.0,
    flash2=1.0,
    backward_attention=1.0,
    batched_product=1.0,
    softmax_passes=0.0,
    elements=0.0,
    loss_bytes=0.0,
    launch_eager=0.0,
    launch_adapter=0.0,
    launch_zero3=0.0,
    nvlink_share=1.0,
    nic_share=1.0,
    pcie_share=1.0,
    tensor_exposed=1.0,
    data_exposed=1.0,
    shard_exposed=1.0,
    shard_interference=0.0,
    shard_scale=1e12,
    hop_exposed=1.0,
    collective_s=0.0,
    deepspeed=1.0,
    deepspeed_zero3=1.0,
    instruction_s=0.0,
    step_s=0.0,
)
ALONE = replace(OURS, deepspeed=False, gathers_hidden=False)


def ideal_step(work: Work, gpu: Gpu, links: Links, **changes) -> StepTime:
    """With nothing lost, unless `changes` say so."""
    stack, constants = changes.pop("stack", ALONE), replace(IDEAL, **changes)
    return step_time(work, gpu, links, stack=stack, constants=constants)
