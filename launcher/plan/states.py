"""(load, layout, share) -> bytes of the states: weights, gradients, optimizer, buckets, copies of the step. DERIVE, pure.

Sources: DeepSpeed 0.19.8 (stage_1_and_2.py, stage3.py, bf16_optimizer.py), read and measured. tests/stages/test_held_bytes.py
compares every number with what the processes of real runs hold.
"""

from __future__ import annotations

from launcher.plan.layout import BYTES, Layout, sums_in_fp32
from launcher.plan.load import Load
from launcher.plan.parameters import causal_parameters, quantized_weights, reward_parameters
from launcher.plan.share import Share

ADAM_MOMENT_BYTES = 8  # first and second moment, fp32
MASTER_BYTES = 4  # ZeRO >= 1 keeps an fp32 copy of its partition, also of fp32 parameters (stage_1_and_2.py: clone().float())
GRADIENT_COPY_BYTES = 4  # the fp32 gradient partition that exists during the step
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, an 8-bit scale for 64 weights, an fp32 scale for 256 of those scales
LIVE_PARAMETERS = 1_000_000_000  # stage3_max_live_parameters
LIVE_SHARE = 0.6  # of that limit: 0.5-0.6 is what is typically reached
SUB_GROUP_ELEMENTS = 1_000_000_000  # sub_group_size: ZeRO 3 steps through so many parameters at once
NVME_BUFFERS = 4  # buffers of one sub-group each, fp32: parameter, gradient and two moments


def trained_parameters(load: Load, share: Share) -> int:
    """Parameters that an optimizer of this rank's job holds: ppo trains the actor and the critic."""
    return (share.num_adapter if load.adapter else share.num_params) + load.num_critic_trained


def weight_bytes(load: Load, layout: Layout, share: Share) -> float:
    """Bytes of the handed-on model's weights before ZeRO: nf4 packs the matrices of the blocks."""
    size = BYTES[layout.precision]
    packed = quantized_weights(load.shape) if load.quantized else 0
    return NF4_BYTES * packed + size * (share.num_params - packed + share.num_adapter)


def _critic_weights(load: Load) -> int:
    adapter = load.num_adapter if load.kind == "ppo" else 0
    return load.num_critic + adapter


def frozen_parameters(load: Load) -> int:
    """Parameters of models that only infer (ppo). An adapter switched off is the reference, so no copy is kept then.

    dpo has none: the reference's log-probabilities are worked out once before training, by the model itself.
    """
    if load.kind != "ppo":
        return 0
    return reward_parameters(load.shape) + (causal_parameters(load.shape) if load.adapter is None else 0)


def state_parts(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """What stays on the device from the first step to the last."""
    size, shards, trained = BYTES[layout.precision], layout.shards, trained_parameters(load, share)
    on_device = 0 if layout.offload_parameters == "cpu" else 1
    weights = weight_bytes(load, layout, share) + size * _critic_weights(load)
    parts = {
        "parameters": on_device * weights / layout.parameter_shards,
        "frozen_models": on_device * size * frozen_parameters(load) / layout.parameter_shards,
        "gradients": _gradient_bytes(layout) * trained / (shards if layout.zero >= 2 else 1),
        "optimizer": (1 - off_device(layout)) * _optimizer_bytes(trained, layout),
    }
    if layout.zero >= 1:
        # rendered from the whole model, so a rank that holds a part of it has the same bucket
        bucket = reduce_bucket_elements(load.shape.hidden, num_trainable=load.num_trainable + load.num_critic_trained)
        parts["buckets"] = size * bucket * (2 if layout.zero == 3 else 1)
    if layout.zero == 3:
        live = min(LIVE_PARAMETERS, share.num_params) if shards > 1 else 0
        parts["live_parameters"] = size * min(live, LIVE_SHARE * LIVE_PARAMETERS)
    if layout.hpz > 1:
        parts["secondary_parameters"] = weights / layout.hpz
    if layout.offload_optimizer == "nvme" and not layout.cuda:
        parts["swap_buffers"] = swap_bytes(trained, layout)
    return parts


def _gradient_bytes(layout: Layout) -> int:
    """Of one gradient on the device. An offloaded optimizer adds them up on the host."""
    return 4 if sums_in_fp32(layout) and layout.offload_optimizer == "none" else BYTES[layout.precision]


def off_device(layout: Layout) -> float:
    """Share of the optimizer that rests elsewhere."""
    return {"none": 0.0, "cpu": layout.ratio, "nvme": 1.0}[layout.offload_optimizer]


def _optimizer_bytes(trained: int, layout: Layout) -> float:
    """Adam moments and, from ZeRO 1, the fp32 master weights, split over the ranks of ZeRO."""
    if layout.zero == 0:
        return ADAM_MOMENT_BYTES * trained
    return (ADAM_MOMENT_BYTES + MASTER_BYTES) * trained / layout.shards


def swap_bytes(trained: int, layout: Layout) -> float:
    """Host memory that passes an optimizer on NVMe through, one sub-group at a time."""
    return NVME_BUFFERS * 4 * min(SUB_GROUP_ELEMENTS, trained / layout.shards)


def step_parts(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """The optimizer step: the fp32 gradient partition. fp32 under ZeRO 0 steps on its gradients without a copy.

    ZeRO 1 that adds up in fp32 (BF16_Optimizer) steps without one too; its last backward pass ends with all gradients in bf16.
    """
    trained = trained_parameters(load, share)
    if layout.zero == 1 and sums_in_fp32(layout) and layout.offload_optimizer == "none":
        return {"gradient_copy": BYTES[layout.precision] * trained}
    copied = 0.0 if layout.zero == 0 else trained / layout.shards
    if layout.zero == 3:  # stage3.py steps through sub-groups, one copy at a time
        copied = min(copied, SUB_GROUP_ELEMENTS)
    return {"gradient_copy": (1 - off_device(layout)) * GRADIENT_COPY_BYTES * copied}


def reduce_bucket_elements(hidden: int, *, num_trainable: int) -> int:
    """Gradients that are reduced in one call: hidden^2 as transformers chooses, but at least 16.8 M elements.

    The bucket is allocated whole, so it is never larger than what is trained.
    """
    return max(1, min(max(hidden**2, 2**24), num_trainable))
