"""(load, layout, share) -> bytes of the states: weights, gradients, optimizer, buckets, copies of the step. DERIVE, pure.

Sources: DeepSpeed 0.19.8 (stage_1_and_2.py, stage3.py, bf16_optimizer.py), read and measured. tests/stages/test_held_bytes.py
compares every number with what the processes of real runs hold.
"""

from __future__ import annotations

from launcher.plan.layout import BYTES, Layout, sums_in_fp32
from launcher.plan.load import Load
from launcher.plan.parameters import causal_parameters, quantized_weights, reward_parameters
from launcher.plan.share import Share
from launcher.plan.tensors import Split, split_of

ADAM_MOMENT_BYTES = 8  # first and second moment, fp32
MASTER_BYTES = 4  # ZeRO >= 1 keeps an fp32 copy of its partition, also of fp32 parameters (stage_1_and_2.py: clone().float())
GRADIENT_COPY_BYTES = 4  # the fp32 gradient partition that exists during the step
OFFLOADED_BYTES = ADAM_MOMENT_BYTES + MASTER_BYTES + 4  # of each parameter on the host, with an fp32 gradient
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, an 8-bit scale for 64 weights, an fp32 scale for 256 of those scales
LIVE_PARAMETERS = 1_000_000_000  # stage3_max_live_parameters
LIVE_SHARE = 0.6  # of that limit: 0.5-0.6 is what is typically reached
SUB_GROUP_ELEMENTS = 1_000_000_000  # sub_group_size: ZeRO 3 steps through so many parameters at once
ALLREDUCE_ELEMENTS = 500_000_000  # gradients that DeepSpeed's engine joins for one all-reduce (engine.py)
FP64_BYTES = 8
NVME_BUFFERS = 4  # buffers of one sub-group each, fp32: parameter, gradient and two moments
# Buffers of one tensor's part each, for parameters on NVMe: tensors are gathered one after the other, as modules need them.
NVME_PARAMETER_BUFFERS = 5


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
    """What a rank holds when the last backward pass of a step has ended, exact to the tensor."""
    size, split, shards = BYTES[layout.precision], _split(load, layout, share), layout.shards
    on_device = 1 if layout.offload_parameters == "none" else 0
    critic = size * _critic_weights(load) / layout.parameter_shards
    parts = {
        "parameters": on_device * (_weight_bytes_held(load, layout, split) + critic),
        "frozen_models": on_device * size * frozen_parameters(load) / layout.parameter_shards,
        **_gradient_parts(load, layout, split),
        "optimizer": (1 - off_device(layout)) * _optimizer_bytes(load, layout, split),
    }
    if layout.zero >= 1 and not uses_bf16_optimizer(layout):
        parts["buckets"] = _bucket_bytes(load, layout, split) * (2 if layout.zero == 3 else 1)
    if layout.zero in (1, 2) and layout.offload_optimizer != "none":
        parts["offload_buffer"] = size * split.largest  # temp_grad_buffer_for_gpu_offload
    if layout.zero == 3 and shards > 1:
        parts["persistent_parameters"] = size * split.persistent
        live = min(LIVE_SHARE * LIVE_PARAMETERS, share.num_params)
        # dsconfig keeps none gathered for its next use where parameters come from NVMe
        parts["live_parameters"] = size * (share.num_module if layout.offload_parameters == "nvme" else live)
    if layout.hpz > 1:
        parts["secondary_parameters"] = (weight_bytes(load, layout, share) + size * _critic_weights(load)) / layout.hpz
    if not layout.cuda:
        parts |= parameters_by_nvme(load, layout, share)
        if layout.offload_optimizer == "nvme":
            parts["swap_buffers"] = parts.get("swap_buffers", 0.0) + swap_bytes(trained_parameters(load, share), layout)
    return parts


def _split(load: Load, layout: Layout, share: Share) -> Split:
    return split_of(load.shape, load.kind, load.adapter, stage=share.stage, tp=layout.tp, pp=layout.pp, ranks=layout.shards)


def _weight_bytes_held(load: Load, layout: Layout, split: Split) -> float:
    """Of the handed-on model, as ZeRO keeps them: flat buffers of what is trained, or shards of all tensors."""
    elements = split.trained + split.frozen
    if layout.zero == 3:
        elements = split.shards + split.frozen_shards
    elif layout.zero >= 1:
        elements = split.flat + split.frozen
    size = BYTES[layout.precision]
    packed = quantized_weights(load.shape) / layout.parameter_shards if load.quantized else 0
    return NF4_BYTES * packed + size * (elements - packed)


def _gradient_parts(load: Load, layout: Layout, split: Split) -> dict[str, float]:
    """ZeRO 0 and 1 keep all gradients to the end of the backward pass, 2 and 3 those that a rank steps.

    ZeRO 2 keeps whole the gradients of tensors that lie across the border of two ranks, unless it adds up in fp32. Under
    offload they go from the bucket to the host, but for fp32 sums of ZeRO 2: those stay on the device until the step. At ZeRO 3
    the share of an optimizer that a ratio leaves on the device has its fp32 gradients there.
    """
    size, critic = _gradient_bytes(layout), load.num_critic_trained / (layout.shards if layout.zero >= 2 else 1)
    away = layout.offload_optimizer != "none"
    if layout.zero == 3:
        held = GRADIENT_COPY_BYTES * (1 - off_device(layout)) if away and layout.cuda else size
        return {"gradients": held * (split.shards + critic)}
    if layout.zero == 2:
        part = split.flat / layout.shards
        if away:
            return {"gradients": size * (part + critic) if sums_in_fp32(layout) else 0.0}
        edges = 0 if sums_in_fp32(layout) else split.touched - part
        return {"gradients": size * (part + critic), "gradient_edges": size * edges}
    if layout.zero == 1:
        return {
            "gradients": size * ((split.flat if uses_bf16_optimizer(layout) else max(split.trained, split.touched)) + critic)
        }
    return {"gradients": size * (split.trained + critic)}


def _gradient_bytes(layout: Layout) -> int:
    """Of one gradient, where micro-batches are added up: at ZeRO 1 and 2 on the device, whatever rests on the host."""
    return 4 if sums_in_fp32(layout) else BYTES[layout.precision]


def uses_bf16_optimizer(layout: Layout) -> bool:
    """DeepSpeed's choice for fp32 sums at ZeRO 1. Its fp32 gradients stay from step to step, beside those in bf16."""
    return layout.zero == 1 and sums_in_fp32(layout) and layout.offload_optimizer == "none"


def _bucket_bytes(load: Load, layout: Layout, split: Split) -> float:
    """Rendered from the whole model, so a rank that holds a part of it has the same; of memory of the host it takes what it
    fills. Sequence ranks add up in fp32, and ZeRO 1 stages its fp32 sums as they are.
    """
    in_fp32 = layout.sp > 1 or (layout.zero == 1 and sums_in_fp32(layout))
    return (4 if in_fp32 else BYTES[layout.precision]) * _bucket_elements(load, layout, split)


def _bucket_elements(load: Load, layout: Layout, split: Split) -> int:
    elements = reduce_bucket_elements(load.shape.hidden, num_trainable=load.num_trainable + load.num_critic_trained)
    return elements if layout.cuda else min(elements, split.trained + load.num_critic_trained)


def off_device(layout: Layout) -> float:
    """Share of the optimizer that rests elsewhere."""
    return {"none": 0.0, "cpu": layout.ratio, "nvme": 1.0}[layout.offload_optimizer]


def _optimizer_bytes(load: Load, layout: Layout, split: Split) -> float:
    """Adam moments and, from ZeRO 1, the fp32 master weights, split over the ranks of ZeRO."""
    if layout.zero == 0:
        return ADAM_MOMENT_BYTES * (split.trained + load.num_critic_trained)
    part = split.shards if layout.zero == 3 else split.flat / layout.shards
    return (ADAM_MOMENT_BYTES + MASTER_BYTES) * (part + load.num_critic_trained / layout.shards)


def offloaded_bytes(load: Load, layout: Layout, share: Share) -> float:
    """Bytes of an offloaded optimizer on the host: masters, moments, gradients, and what they pass through.

    ZeRO 1 and 2 have the new weights in 16 bit beside the masters, and a buffer of the largest tensor; ZeRO 2 without fp32 sums
    adds up whole tensors there. ZeRO 3 adds up in a buffer of its own.
    """
    if layout.offload_optimizer == "none":
        return 0.0
    size, split, critic = BYTES[layout.precision], _split(load, layout, share), load.num_critic_trained / layout.shards
    if layout.zero == 3:
        part = split.shards + critic
        nvme = layout.offload_optimizer == "nvme"
        states = swap_bytes(trained_parameters(load, share), layout) if nvme else OFFLOADED_BYTES * off_device(layout) * part
        return states + _gradient_bytes(layout) * part
    part = split.flat / layout.shards + critic
    whole = split.touched if layout.zero == 2 and layout.grad_accum > 1 and not sums_in_fp32(layout) else 0
    return (OFFLOADED_BYTES + size) * part + size * (split.largest + whole)


def swap_bytes(trained: int, layout: Layout) -> float:
    """Host memory that passes an optimizer on NVMe through, one sub-group at a time."""
    return NVME_BUFFERS * 4 * min(SUB_GROUP_ELEMENTS, trained / layout.shards)


def parameters_by_nvme(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """Host memory of parameters on NVMe: buffers, and parts of tensors that are too small for the disk. Empty elsewhere.

    They pass one tensor at a time, and a step writes a sub-group of them (zero/stage3.py: reserve_partitioned_swap_space).
    """
    if layout.offload_parameters != "nvme":
        return {}
    size, split = BYTES[layout.precision], _split(load, layout, share)
    written = min(SUB_GROUP_ELEMENTS, trained_parameters(load, share) / layout.shards)
    buffers = size * (NVME_PARAMETER_BUFFERS * split.largest_shard + written)
    return {"swap_buffers": buffers, "parameters": size * (split.shards + split.frozen_shards - split.swapped)}


def nvme_bytes(load: Load, layout: Layout, share: Share) -> float:
    """Swap files of one rank: masters, moments and gradients in fp32 of what is trained; parameters in 16 bit."""
    optimizer = OFFLOADED_BYTES * trained_parameters(load, share) / layout.shards
    parameters = BYTES[layout.precision] * _split(load, layout, share).swapped
    return (layout.offload_optimizer == "nvme") * optimizer + (layout.offload_parameters == "nvme") * parameters


def states_at_loss(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """What a rank holds while activations are the most: of gradients, those of the micro-batches before.

    ZeRO 2 allocates its bucket when a backward pass starts and gives it back behind it, ZeRO 1 behind the last one of a step.
    ZeRO 3 keeps one, and its gradients, from step to step.
    """
    parts = state_parts(load, layout, share)
    if uses_bf16_optimizer(layout):
        return parts | {"gradient_copy": BYTES[layout.precision] * trained_parameters(load, share)}
    if layout.zero == 3:
        return parts | {"buckets": parts["buckets"] / 2}
    gone = {"buckets"} if layout.zero == 2 or layout.grad_accum == 1 else set()
    gone |= {"gradients", "gradient_edges"} if layout.grad_accum == 1 else set()
    return {name: size for name, size in parts.items() if name not in gone}


def reduce_parts(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """What the end of the last backward pass adds to state_parts: gradients on their way to the other ranks.

    ZeRO 0 joins them in buffers of up to ALLREDUCE_ELEMENTS, BF16_Optimizer its fp32 sums, and sends them in 16 bit.
    ZeRO 1 moves them into the bucket and keeps its own beside it, ZeRO 2 has the last one, the bucket and a copy of the bucket.
    A pipeline makes the bucket twice (reduce_gradients). Of fp32 sums that go to the host, ZeRO 1 sends a copy in 16 bit, and
    gathers its own part in fp32.
    """
    size, split, trained = BYTES[layout.precision], _split(load, layout, share), trained_parameters(load, share)
    bucket, away = _bucket_bytes(load, layout, split), layout.offload_optimizer != "none"
    sent = min(trained, ALLREDUCE_ELEMENTS)
    if layout.zero == 0:
        return {"reduced": size * sent}
    if uses_bf16_optimizer(layout):
        return {"gradient_copy": size * trained, "reduced": (4 + size) * sent}
    if layout.zero == 1:
        own: float = 0 if away else size * split.touched
        if away and sums_in_fp32(layout):
            own = 4 * split.flat / layout.shards + size * _bucket_elements(load, layout, split)
        twice = bucket if layout.pp > 1 else 0.0
        return {"reduced": twice + max(0.0, own - min(bucket, _gradient_bytes(layout) * trained))}
    if layout.zero == 2:
        return {"reduced": size * split.largest + bucket}
    return {}


def states_at_step(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """What a rank holds while the optimizer steps: of gradients its own, no bucket but the one that ZeRO 3 keeps.

    Where ZeRO 1 has its fp32 sums on their way to the host, those of other ranks still lie in the bucket.
    """
    parts, split = state_parts(load, layout, share), _split(load, layout, share)
    parts.pop("live_parameters", None)
    if layout.zero == 3:
        return parts | {"buckets": parts["buckets"] / 2}
    parts.pop("buckets", None)
    if layout.zero != 1 or uses_bf16_optimizer(layout):
        return parts
    critic = load.num_critic_trained / layout.shards
    if layout.offload_optimizer == "none":
        return parts | {"gradients": _gradient_bytes(layout) * (split.touched + critic)}
    if not sums_in_fp32(layout):
        return parts | {"gradients": 0.0}
    others = _bucket_bytes(load, layout, split) if layout.shards > 1 else 0.0
    return parts | {"gradients": 4 * (split.flat / layout.shards + critic) + others}


def step_parts(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """What the optimizer step adds to states_at_step: the gradients of a rank joined, and in 16 bit cast to fp32.

    fp32 at ZeRO 0 steps on its gradients as they are, ZeRO 2 on its fp32 sums. BF16_Optimizer has all gradients in 16 bit
    still. The norm takes an fp64 copy of each gradient, one after the other. Offload has gradients, norm and step on the host.
    """
    size, split = BYTES[layout.precision], _split(load, layout, share)
    if layout.zero == 0 or layout.offload_optimizer != "none":
        return {}
    if uses_bf16_optimizer(layout):
        return {"gradient_copy": size * trained_parameters(load, share)}
    part = (split.shards if layout.zero == 3 else split.flat / layout.shards) + load.num_critic_trained / layout.shards
    norm = FP64_BYTES * min(split.largest, part)
    if layout.zero == 2 and sums_in_fp32(layout):
        return {"gradient_norm": norm}
    if layout.zero == 3:  # stage3.py steps through sub-groups, one copy at a time
        part = min(part, SUB_GROUP_ELEMENTS)
    copies = GRADIENT_COPY_BYTES + (size if size < GRADIENT_COPY_BYTES and not sums_in_fp32(layout) else 0)
    return {"gradient_copy": max(copies * part, norm)}


def reduce_bucket_elements(hidden: int, *, num_trainable: int) -> int:
    """Gradients that are reduced in one call: hidden^2 as transformers chooses, but at least 16.8 M elements.

    The bucket is allocated whole, so it is never larger than what is trained.
    """
    return max(1, min(max(hidden**2, 2**24), num_trainable))
