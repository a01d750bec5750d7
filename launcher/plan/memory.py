"""(shape, stage, layout) -> Memory: bytes on the fullest rank, by part, at its largest peak. A first honest model.

DERIVE, pure arithmetic. The peaks are the loss (activations and logits are alive) and the optimizer step (fp32 copies of the
gradients are alive); ppo has a third, the rollout (the gathered actor and its key/value cache), a 4-bit stage another, the
scoring of what it hands on. Under a pipeline every stage is worked out. Sources:
DeepSpeed 0.19.8 (stage_1_and_2.py, stage3.py, bf16_optimizer.py) read and measured; published peaks where a number is called
fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, log, sqrt

from launcher.plan.parameters import causal_parameters, lora_parameters, quantized_weights, reward_parameters
from launcher.plan.plan import Checkpointing, Memory, Place, Precision, StagePlan
from launcher.plan.shape import ModelShape
from launcher.plan.share import Share, shares_of
from launcher.spec.model import Lora
from launcher.units import MIB

BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
ADAM_MOMENT_BYTES = 8  # first and second moment, fp32
MASTER_BYTES = 4  # ZeRO >= 1 keeps an fp32 copy of its partition, also of fp32 parameters (stage_1_and_2.py: clone().float())
GRADIENT_COPY_BYTES = 4  # the fp32 gradient partition that exists during the step
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, an 8-bit scale for 64 weights, an fp32 scale for 256 of those scales
LIVE_PARAMETERS = 1_000_000_000  # stage3_max_live_parameters
SUB_GROUP_ELEMENTS = 1_000_000_000  # sub_group_size: the optimizer under offload to NVMe works on so many parameters at once
NVME_BUFFERS = 4  # buffers of one sub-group each, fp32: parameter, gradient and two moments
CUDA_FIXED_BYTES = 2_100_000_000  # context, cuBLAS, NCCL: fitted on published peaks, 1.3-1.6 GB of it the context
# Resident size of a CPU rank that trains nearly nothing. With 530 the stages of examples/tiny.yaml come out at 573-689 MiB,
# measured 576-742 (sft +6 %, reward +2 %, pretrain -3 %, ppo -5 %, dpo -7 %).
CPU_FIXED_BYTES = 530 * MIB
SHARD_WASTE = 1.2  # held / shards after loading under ZeRO 3: 1.21 and 1.23 measured with 0.5 and 1 B parameters
CUDA_FRAGMENTATION = 1.05  # reserved / allocated: fitted; 1.05-1.18 seen
TILE_TOKENS = 4096  # tokens whose logits exist at once (train/scoring.py)
TILE_LOGIT_BYTES = 12  # fp32: log-softmax and its gradient, and the logits or their gradient
PPO_LOGIT_BYTES: dict[Precision, int] = {"fp32": 16, "bf16": 14, "fp16": 14}  # logits, an fp32 copy, log-softmax, gradient
SAMPLED_MICRO_BATCHES = 4  # ppo samples this many micro-batches together (train/ppo_steps.py)
LOG_SIGMA = 0.25  # spread of true / predicted without calibration: ln(1.38) / 1.28, 90 % of the cases are below 1.38


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a stage puts on a rank whatever the layout: the models in memory and the rows of one pass."""

    shape: ModelShape
    kind: str
    adapter: Lora | None
    quantized: bool
    eager: bool  # eager attention keeps the heads x tokens x tokens matrices
    row_tokens: int  # longest sequence; ppo: prompt and answer
    answer_tokens: int  # of it generated (ppo), else 0

    @property
    def sequences_per_row(self) -> int:
        """A preference pair is two sequences in one pass."""
        return 2 if self.kind in ("reward", "dpo") else 1

    @property
    def num_params(self) -> int:
        """Parameters of the model that the stage hands on."""
        return reward_parameters(self.shape) if self.kind == "reward" else causal_parameters(self.shape)

    @property
    def num_adapter(self) -> int:
        """Trained beside a frozen base: LoRA matrices, and the new head of a reward model."""
        if self.adapter is None:
            return 0
        return lora_parameters(self.shape, self.adapter) + (self.shape.hidden if self.kind == "reward" else 0)

    @property
    def num_trainable(self) -> int:
        """Of the model that is handed on: all of it, or the adapter."""
        return self.num_adapter if self.adapter else self.num_params

    @property
    def num_critic(self) -> int:
        """ppo: the critic's parameters without adapters."""
        return reward_parameters(self.shape) if self.kind == "ppo" else 0

    @property
    def num_critic_trained(self) -> int:
        """ppo: all of the critic, or its own adapter and its head."""
        if self.kind != "ppo" or self.adapter is None:
            return self.num_critic
        return self.num_adapter + self.shape.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the load is spread: everything the planner may choose."""

    dp: int
    zero: int
    precision: Precision
    checkpointing: Checkpointing
    offload_optimizer: Place
    offload_parameters: Place
    micro_batch: int
    grad_accum: int
    cuda: bool
    tp: int = 1
    pp: int = 1
    sp: int = 1
    hpz: int = 1  # ranks of a secondary partition of the parameters; 1: there is none
    ratio: float = 1.0  # share of an offloaded optimizer that is on the CPU

    @property
    def shards(self) -> int:
        """Ranks that ZeRO splits over: the replicas, and within each the ranks that share its sequences."""
        return self.dp * self.sp

    @property
    def parameter_shards(self) -> int:
        return self.shards if self.zero == 3 else 1

    def in_flight(self, stage: int) -> int:
        """Micro-batches whose activations a pipeline stage holds at once: one forward, one backward (1F1B)."""
        return min(self.pp - stage, self.grad_accum)


def sums_in_fp32(layout: Layout | StagePlan) -> bool:
    """Whether gradients of several micro-batches are added up in fp32.

    In bf16 the error of a gradient grows with their number (64: 1.1e-2 against 6.8e-3, relative, measured). At ZeRO 1
    BF16_Optimizer does it, but takes sequence ranks for tensor ranks: all but the first fail with no gradient to make the norm
    of (DeepSpeed 0.19.8 runtime/bf16_optimizer.py:573).
    """
    works = layout.sp == 1 or layout.zero >= 2
    return layout.precision == "bf16" and layout.grad_accum > 1 and works


def memory_of(load: Load, layout: Layout, *, limit_bytes: int) -> Memory:
    """The fullest rank at its peak. `disk_bytes` is what the stage leaves behind with one checkpoint kept; see disk_bytes."""
    shares = shares_of(load.shape, load.kind, load.adapter, tp=layout.tp, pp=layout.pp)
    parts = max((_rank_parts(load, layout, share) for share in shares), key=lambda parts: sum(parts.values()))
    peak = sum(parts.values())
    return Memory(
        peak_bytes=peak,
        limit_bytes=limit_bytes,
        p_fit=p_fit(peak, limit_bytes),
        parts=parts,
        host_peak_bytes=round(max(_host_bytes(load, layout, share) for share in shares)),
        disk_bytes=None,
    )


def _rank_parts(load: Load, layout: Layout, share: Share) -> dict[str, int]:
    """Bytes by part of one rank at its largest peak."""
    states = _state_parts(load, layout, share)
    peaks = [states | _loss_parts(load, layout, share), states | _step_parts(load, layout, share)]
    if load.kind == "ppo":
        peaks.append(states | _rollout_parts(load, layout))
    if load.quantized:
        peaks.append(states | {"shipped_models": _shipped_bytes(load, layout)})
    if not layout.cuda:
        peaks.append(states | {"merged_model": _merged_bytes(load, layout)})
    largest = max(peaks, key=lambda parts: sum(parts.values()))
    parts = {name: round(size) for name, size in largest.items() if size >= 1}
    return parts | _fixed_parts(sum(parts.values()), cuda=layout.cuda)


def p_fit(peak_bytes: int, limit_bytes: int) -> float:
    """Probability that the true peak is below the limit: true / predicted is log-normal around 1."""
    if limit_bytes <= 0:
        return 0.0
    return round((1 + erf(log(limit_bytes / peak_bytes) / LOG_SIGMA / sqrt(2))) / 2, 3)


def _trained(load: Load, share: Share) -> int:
    """Parameters that an optimizer of this rank's job holds: ppo trains the actor and the critic."""
    return (share.num_adapter if load.adapter else share.num_params) + load.num_critic_trained


def _weight_bytes(load: Load, layout: Layout, share: Share) -> float:
    """Bytes of the handed-on model's weights before ZeRO: nf4 packs the matrices of the blocks."""
    size = BYTES[layout.precision]
    packed = quantized_weights(load.shape) if load.quantized else 0
    return NF4_BYTES * packed + size * (share.num_params - packed + share.num_adapter)


def _critic_weights(load: Load) -> int:
    adapter = load.num_adapter if load.kind == "ppo" else 0
    return load.num_critic + adapter


def _frozen_models(load: Load) -> int:
    """Parameters of models that only infer (ppo). An adapter switched off is the reference, so no copy is kept then.

    dpo has none: the reference's log-probabilities are worked out once before training, by the model itself.
    """
    if load.kind != "ppo":
        return 0
    return reward_parameters(load.shape) + (causal_parameters(load.shape) if load.adapter is None else 0)


def _state_parts(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """What stays on the device from the first step to the last."""
    size, shards, trained = BYTES[layout.precision], layout.shards, _trained(load, share)
    on_device = 0 if layout.offload_parameters == "cpu" else 1
    weights = _weight_bytes(load, layout, share) + size * _critic_weights(load)
    parts = {
        "parameters": on_device * weights / layout.parameter_shards,
        "frozen_models": on_device * size * _frozen_models(load) / layout.parameter_shards,
        "gradients": _gradient_bytes(layout) * trained / (shards if layout.zero >= 2 else 1),
        "optimizer": (1 - _off_device(layout)) * _optimizer_bytes(trained, layout),
    }
    if layout.zero >= 1:
        # rendered from the whole model, so a rank that holds a part of it has the same bucket
        bucket = reduce_bucket_elements(load.shape.hidden, num_trainable=load.num_trainable + load.num_critic_trained)
        parts["buckets"] = size * bucket * (2 if layout.zero == 3 else 1)
    if layout.zero == 3:
        live = min(LIVE_PARAMETERS, share.num_params) if shards > 1 else 0
        parts["live_parameters"] = size * min(live, 0.6 * LIVE_PARAMETERS)  # 0.5-0.6 of the limit is what is typically reached
    if layout.hpz > 1:
        parts["secondary_parameters"] = weights / layout.hpz
    if layout.offload_optimizer == "nvme" and not layout.cuda:
        parts["swap_buffers"] = _swap_bytes(trained, layout)
    return parts


def _gradient_bytes(layout: Layout) -> int:
    """Of one gradient on the device. An offloaded optimizer adds them up on the host."""
    return 4 if sums_in_fp32(layout) and layout.offload_optimizer == "none" else BYTES[layout.precision]


def _off_device(layout: Layout) -> float:
    """Share of the optimizer that rests elsewhere."""
    return {"none": 0.0, "cpu": layout.ratio, "nvme": 1.0}[layout.offload_optimizer]


def _optimizer_bytes(trained: int, layout: Layout) -> float:
    """Adam moments and, from ZeRO 1, the fp32 master weights, split over the ranks of ZeRO."""
    if layout.zero == 0:
        return ADAM_MOMENT_BYTES * trained
    return (ADAM_MOMENT_BYTES + MASTER_BYTES) * trained / layout.shards


def _swap_bytes(trained: int, layout: Layout) -> float:
    """Host memory that passes an optimizer on NVMe through, one sub-group at a time."""
    return NVME_BUFFERS * 4 * min(SUB_GROUP_ELEMENTS, trained / layout.shards)


def _step_parts(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """The optimizer step: the fp32 gradient partition. fp32 under ZeRO 0 steps on its gradients without a copy.

    ZeRO 1 that adds up in fp32 (BF16_Optimizer) steps without one too; its last backward pass ends with all gradients in bf16.
    """
    trained = _trained(load, share)
    if layout.zero == 1 and sums_in_fp32(layout) and layout.offload_optimizer == "none":
        return {"gradient_copy": BYTES[layout.precision] * trained}
    copied = 0.0 if layout.zero == 0 else GRADIENT_COPY_BYTES * trained / layout.shards
    return {"gradient_copy": (1 - _off_device(layout)) * copied}


def _loss_parts(load: Load, layout: Layout, share: Share) -> dict[str, float]:
    """The end of the forward pass: activations of all layers, and where the loss is computed the logits with their gradient."""
    tokens = pass_tokens(load, layout)
    parts = {"activations": activation_bytes(load, layout, share, tokens=tokens)}
    if load.kind != "reward" and share.head:
        parts["logits"] = _logits_bytes(load, layout, tokens=tokens)
    if layout.offload_parameters == "cpu":
        parts["staging"] = BYTES[layout.precision] * share.num_params / share.layers
    return parts


def pass_tokens(load: Load, layout: Layout) -> int:
    """Tokens of one micro-batch on one rank, at most."""
    return -(-layout.micro_batch * load.sequences_per_row * load.row_tokens // layout.sp)


def _logits_bytes(load: Load, layout: Layout, *, tokens: int) -> float:
    """Logits with their copies and gradient, of one tile of tokens; ppo has its own loss on whole rows of its answers."""
    vocab, hidden, size = -(-load.shape.vocab // layout.tp), load.shape.hidden, BYTES[layout.precision]
    if load.kind == "ppo":
        return layout.micro_batch * (load.answer_tokens + 1) * vocab * PPO_LOGIT_BYTES[layout.precision]
    tiles = -(-tokens // TILE_TOKENS)
    tile = -(-tokens // tiles) * vocab * TILE_LOGIT_BYTES
    head = 0 if load.adapter else vocab * min(tiles, 2)  # its gradient: the sum over the tiles so far, and the next one
    return tile + size * hidden * (2 * tokens + head)  # the last hidden states, and their gradient


def _rollout_parts(load: Load, layout: Layout) -> dict[str, float]:
    """Generation: the key/value cache of the rows sampled together and, under ZeRO-3, the actor gathered whole."""
    shape, size = load.shape, BYTES[layout.precision]
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * size * load.row_tokens
    return {
        "key_value_cache": cache * SAMPLED_MICRO_BATCHES * layout.micro_batch,
        "gathered_actor": size * load.num_params if layout.zero == 3 else 0.0,
    }


def _shipped_bytes(load: Load, layout: Layout) -> float:
    """After a 4-bit stage every rank scores the merged model that is handed on, whole."""
    return BYTES[layout.precision] * load.num_params


def _merged_bytes(load: Load, layout: Layout) -> float:
    """Rank 0 merges an adapter into the whole base in host memory, beside whatever is trained."""
    return BYTES[layout.precision] * load.num_params if load.adapter else 0.0


def activation_bytes(load: Load, layout: Layout, share: Share, *, tokens: int) -> float:
    """Saved for the backward pass. Full checkpointing keeps each block's input and recomputes one block at a time.

    `offload` keeps the inputs in host memory.
    """
    shape, flying = load.shape, layout.in_flight(share.stage)
    per_layer = tokens * layer_activation_bytes(
        shape, layout.precision, row_tokens=load.row_tokens, eager=load.eager, tp=layout.tp
    )
    if layout.checkpointing == "none":
        return flying * share.layers * per_layer
    # Twice one block's activations: the block's outputs and their gradients live beside them. Fitted on published peaks.
    inputs = 0.0 if layout.checkpointing == "offload" else block_inputs_bytes(load, layout, share, tokens=tokens)
    return inputs + 2 * per_layer


def block_inputs_bytes(load: Load, layout: Layout, share: Share, *, tokens: int) -> float:
    """What checkpointing keeps: one input for each block and micro-batch under way."""
    return layout.in_flight(share.stage) * share.layers * load.shape.hidden * BYTES[layout.precision] * tokens


def layer_activation_bytes(shape: ModelShape, precision: Precision, *, row_tokens: int, eager: bool, tp: int = 1) -> float:
    """Bytes per token and block that transformers' eager code saves: 63 x hidden for Llama-2-7B, 16 bit (measured: 64.3).

    Tensor parallel ranks share what lies inside attention and MLP; norms and the residual stream are whole on each.
    """
    size, hidden = BYTES[precision], shape.hidden
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # RMSNorm keeps an fp32 copy, the normed fp32 values, their cast and its product with the weight; LayerNorm input and output
    norms = shape.norms_per_block * hidden * (2 * size if shape.layer_norm else 8 + 2 * size)
    attention = size * (2 * (query + 2 * key_value) + query) + 4 * shape.heads  # before and after RoPE, output, log-sum-exp
    mlp = size * shape.ffn * (4 if shape.gated else 3)
    scores = (2 * size + 4) * shape.heads * row_tokens if eager else 0
    return norms + 2 * size * hidden + (attention + mlp + scores) / tp


def _fixed_parts(allocated_bytes: int, *, cuda: bool) -> dict[str, int]:
    if not cuda:
        return {"fixed": CPU_FIXED_BYTES}
    return {"fragmentation": round((CUDA_FRAGMENTATION - 1) * allocated_bytes), "fixed": CUDA_FIXED_BYTES}


def _host_bytes(load: Load, layout: Layout, share: Share) -> float:
    """Host memory of one rank beside the device: the imported stack, what is offloaded, models on their way there."""
    if not layout.cuda:
        return 0.0
    trained = _trained(load, share)
    states = _off_device(layout) * (ADAM_MOMENT_BYTES + MASTER_BYTES + GRADIENT_COPY_BYTES) * trained / layout.shards
    weights = _weight_bytes(load, layout, share) + BYTES[layout.precision] * (load.num_critic + _frozen_models(load))
    offloaded = _swap_bytes(trained, layout) if layout.offload_optimizer == "nvme" else states
    offloaded += weights / layout.shards if layout.offload_parameters == "cpu" else 0.0
    if layout.checkpointing == "offload":
        offloaded += block_inputs_bytes(load, layout, share, tokens=pass_tokens(load, layout))
    return CPU_FIXED_BYTES + max(offloaded + _merged_bytes(load, layout), loading_bytes(layout, share))


def loading_bytes(layout: Layout, share: Share) -> float:
    """Weights in host memory before they reach the device: this rank's part, which is the whole model without any degree.

    Tensor and pipeline ranks read their part into place; ZeRO 3 reads a module whole and keeps its shard.
    """
    weights = BYTES[layout.precision] * share.num_params / layout.parameter_shards
    return weights * (SHARD_WASTE if layout.zero == 3 else 1) + _module_bytes(layout, share)


def _module_bytes(layout: Layout, share: Share) -> float:
    """What is whole beside the weights that stay."""
    return BYTES[layout.precision] * share.num_module if layout.zero == 3 else 0.0


def reduce_bucket_elements(hidden: int, *, num_trainable: int) -> int:
    """Gradients that are reduced in one call: hidden^2 as transformers chooses, but at least 16.8 M elements.

    The bucket is allocated whole, so it is never larger than what is trained.
    """
    return max(1, min(max(hidden**2, 2**24), num_trainable))


def checkpoint_bytes(load: Load) -> int:
    """One checkpoint: fp32 masters and two moments of what is trained (for an adapter only that), the same in every layout."""
    return (MASTER_BYTES + ADAM_MOMENT_BYTES) * (load.num_trainable + load.num_critic_trained)


def artifact_bytes(load: Load, *, precision: Precision) -> int:
    """What is handed on: the whole model, and the adapter beside it."""
    return BYTES[precision] * (load.num_params + load.num_adapter)
