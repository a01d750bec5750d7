"""(shape, stage, layout) -> Memory: bytes on the fullest rank, by part, at its largest peak. A first honest model.

DERIVE, pure arithmetic. The peaks are the loss (activations and logits are alive) and the optimizer step (fp32 copies of the
gradients are alive); ppo has a third, the rollout (the gathered actor and its key/value cache), a 4-bit stage another, the
scoring of what it hands on. Sources: DeepSpeed 0.19.8 (stage_1_and_2.py, stage3.py) and TRL 1.16 (kernels/chunked_logprob.py)
read; published peaks where a number is called fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, log, sqrt

from launcher.plan.parameters import causal_parameters, lora_parameters, quantized_weights, reward_parameters
from launcher.plan.plan import Checkpointing, Memory, Place, Precision
from launcher.plan.shape import ModelShape
from launcher.spec.model import Lora
from launcher.units import MIB

BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
ADAM_MOMENT_BYTES = 8  # first and second moment, fp32
MASTER_BYTES = 4  # ZeRO >= 1 keeps an fp32 copy of its partition, also of fp32 parameters (stage_1_and_2.py: clone().float())
GRADIENT_COPY_BYTES = 4  # the fp32 gradient partition that exists during the step
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, an 8-bit scale for 64 weights, an fp32 scale for 256 of those scales
LIVE_PARAMETERS = 1_000_000_000  # stage3_max_live_parameters
CUDA_FIXED_BYTES = 2_100_000_000  # context, cuBLAS, NCCL: fitted on published peaks, 1.3-1.6 GB of it the context
# Resident size of a CPU rank that trains nearly nothing: 460 MiB, forked. With 500 the stages of examples/tiny.yaml come out at
# 551-597 MiB where 532-631 were measured (ppo +3 %, reward +5 %, sft -5 %, pretrain -10 %).
CPU_FIXED_BYTES = 500 * MIB
CUDA_FRAGMENTATION = 1.05  # reserved / allocated: fitted; 1.05-1.18 seen
LOGIT_BYTES: dict[Precision, int] = {"fp32": 16, "bf16": 14, "fp16": 14}  # logits, an fp32 copy, log-softmax, gradient
TILE_TOKENS, TILE_VOCAB = 4096, 32_768  # TRL's fused head: TOKEN_CHUNK_SIZE and its vocabulary chunk
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
    cuda: bool


def memory_of(load: Load, layout: Layout, *, limit_bytes: int) -> Memory:
    """The fullest rank at its peak. `disk_bytes` is what the stage leaves behind with one checkpoint kept; see disk_bytes."""
    states = _state_parts(load, layout)
    peaks = [_loss_parts(load, layout), _step_parts(load, layout)]
    if load.kind == "ppo":
        peaks.append(_rollout_parts(load, layout))
    if load.quantized:
        peaks.append({"shipped_models": _shipped_bytes(load, layout)})
    transient = max(peaks, key=lambda parts: sum(parts.values()))
    parts = {name: round(size) for name, size in (states | transient).items() if size >= 1}
    parts |= _fixed_parts(sum(parts.values()), cuda=layout.cuda)
    peak = sum(parts.values())
    return Memory(
        peak_bytes=peak,
        limit_bytes=limit_bytes,
        p_fit=p_fit(peak, limit_bytes),
        parts=parts,
        host_peak_bytes=round(_host_bytes(load, layout)),
        disk_bytes=None,
    )


def p_fit(peak_bytes: int, limit_bytes: int) -> float:
    """Probability that the true peak is below the limit: true / predicted is log-normal around 1."""
    if limit_bytes <= 0:
        return 0.0
    return round((1 + erf(log(limit_bytes / peak_bytes) / LOG_SIGMA / sqrt(2))) / 2, 3)


def _trained(load: Load) -> int:
    """Parameters that an optimizer of this rank's job holds: ppo trains the actor and the critic."""
    return load.num_trainable + load.num_critic_trained


def _weight_bytes(load: Load, layout: Layout) -> float:
    """Bytes of the handed-on model's weights before any split: nf4 packs the matrices of the blocks."""
    size = BYTES[layout.precision]
    if not load.quantized:
        return size * (load.num_params + load.num_adapter)
    packed = quantized_weights(load.shape)
    return NF4_BYTES * packed + size * (load.num_params - packed + load.num_adapter)


def _critic_weights(load: Load) -> int:
    adapter = load.num_adapter if load.kind == "ppo" else 0
    return load.num_critic + adapter


def _frozen_models(load: Load) -> int:
    """Parameters that only infer. An adapter switched off is the reference, so no copy is kept then."""
    reference = causal_parameters(load.shape) if load.kind in ("dpo", "ppo") and load.adapter is None else 0
    return reference + (reward_parameters(load.shape) if load.kind == "ppo" else 0)


def _state_parts(load: Load, layout: Layout) -> dict[str, float]:
    """What stays on the device from the first step to the last."""
    size, dp, trained = BYTES[layout.precision], layout.dp, _trained(load)
    split3 = dp if layout.zero == 3 else 1
    on_device = 0 if layout.offload_parameters == "cpu" else 1
    gradient_split = dp if layout.zero >= 2 else 1
    parts = {
        "parameters": on_device * (_weight_bytes(load, layout) + size * _critic_weights(load)) / split3,
        "frozen_models": on_device * size * _frozen_models(load) / split3,
        "gradients": size * trained / gradient_split,
        "optimizer": 0.0 if layout.offload_optimizer == "cpu" else _optimizer_bytes(trained, layout),
    }
    if layout.zero >= 1:
        bucket = reduce_bucket_elements(load.shape.hidden, num_trainable=trained)
        parts["buckets"] = size * bucket * (2 if layout.zero == 3 else 1)
    if layout.zero == 3:
        live = min(LIVE_PARAMETERS, load.num_params) if dp > 1 else 0
        parts["live_parameters"] = size * min(live, 0.6 * LIVE_PARAMETERS)  # 0.5-0.6 of the limit is what is typically reached
    return parts


def _optimizer_bytes(trained: int, layout: Layout) -> float:
    """Adam moments and, from ZeRO 1, the fp32 master weights, split over the data-parallel ranks."""
    if layout.zero == 0:
        return ADAM_MOMENT_BYTES * trained
    return (ADAM_MOMENT_BYTES + MASTER_BYTES) * trained / layout.dp


def _step_parts(load: Load, layout: Layout) -> dict[str, float]:
    """The optimizer step: the fp32 gradient partition. fp32 under ZeRO 0 steps on its gradients without a copy."""
    if layout.zero == 0 or layout.offload_optimizer == "cpu":
        return {}
    return {"gradient_copy": GRADIENT_COPY_BYTES * _trained(load) / layout.dp}


def _loss_parts(load: Load, layout: Layout) -> dict[str, float]:
    """The end of the forward pass: activations of all layers, and the logits with their gradient."""
    tokens = layout.micro_batch * load.sequences_per_row * load.row_tokens
    parts = {"activations": activation_bytes(load, layout, tokens=tokens)}
    if load.kind != "reward":
        parts["logits"] = _logits_bytes(load, layout, tokens=tokens)
    if layout.offload_parameters == "cpu":
        parts["staging"] = BYTES[layout.precision] * load.num_params / load.shape.layers
    return parts


def _logits_bytes(load: Load, layout: Layout, *, tokens: int) -> float:
    """Logits with their copies and gradient. TRL's head works in tiles; ppo has its own loss on whole rows of its answers."""
    vocab, hidden = load.shape.vocab, load.shape.hidden
    if load.kind == "ppo":
        return layout.micro_batch * (load.answer_tokens + 1) * vocab * LOGIT_BYTES[layout.precision]
    tile = min(tokens, TILE_TOKENS) * min(vocab, TILE_VOCAB) * LOGIT_BYTES[layout.precision]
    gradients = 4 * hidden * (tokens + (vocab if load.adapter is None else 0))  # fp32, of the hidden states and of the head
    return tile + gradients


def _rollout_parts(load: Load, layout: Layout) -> dict[str, float]:
    """Generation: the key/value cache of the rows sampled together and, under ZeRO-3, the actor gathered whole."""
    shape, size = load.shape, BYTES[layout.precision]
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * size * load.row_tokens
    return {
        "key_value_cache": cache * SAMPLED_MICRO_BATCHES * layout.micro_batch,
        "gathered_actor": size * load.num_params if layout.zero == 3 else 0.0,
    }


def _shipped_bytes(load: Load, layout: Layout) -> float:
    """After a 4-bit stage every rank scores the merged model that is handed on, whole (dpo: and the model it started from)."""
    return BYTES[layout.precision] * load.num_params * (2 if load.kind == "dpo" else 1)


def activation_bytes(load: Load, layout: Layout, *, tokens: int) -> float:
    """Saved for the backward pass. Full checkpointing keeps each block's input and recomputes one block at a time."""
    shape = load.shape
    per_layer = layer_activation_bytes(shape, layout.precision, row_tokens=load.row_tokens, eager=load.eager) * tokens
    if layout.checkpointing == "none":
        return shape.layers * per_layer
    # Twice one block's activations: the block's outputs and their gradients live beside them. Fitted on published peaks.
    return shape.layers * shape.hidden * BYTES[layout.precision] * tokens + 2 * per_layer


def layer_activation_bytes(shape: ModelShape, precision: Precision, *, row_tokens: int, eager: bool) -> float:
    """Bytes per token and block that transformers' eager code saves: 63 x hidden for Llama-2-7B, 16 bit (measured: 64.3)."""
    size, hidden = BYTES[precision], shape.hidden
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # RMSNorm keeps an fp32 copy, the normed fp32 values, their cast and its product with the weight; LayerNorm input and output
    norms = 2 * hidden * (2 * size if shape.layer_norm else 8 + 2 * size)
    attention = size * (2 * (query + 2 * key_value) + query) + 4 * shape.heads  # before and after RoPE, output, log-sum-exp
    mlp = size * shape.ffn * (4 if shape.gated else 3)
    scores = (2 * size + 4) * shape.heads * row_tokens if eager else 0
    return norms + attention + mlp + 2 * size * hidden + scores


def _fixed_parts(allocated_bytes: int, *, cuda: bool) -> dict[str, int]:
    if not cuda:
        return {"fixed": CPU_FIXED_BYTES}
    return {"fragmentation": round((CUDA_FRAGMENTATION - 1) * allocated_bytes), "fixed": CUDA_FIXED_BYTES}


def _host_bytes(load: Load, layout: Layout) -> float:
    """Host memory of one rank beside the device: the imported stack, what is offloaded, models on their way there."""
    if not layout.cuda:
        return 0.0
    trained = _trained(load)
    states = (ADAM_MOMENT_BYTES + MASTER_BYTES + GRADIENT_COPY_BYTES) * trained / layout.dp
    weights = (_weight_bytes(load, layout) + BYTES[layout.precision] * (load.num_critic + _frozen_models(load))) / layout.dp
    offloaded = (states if layout.offload_optimizer == "cpu" else 0.0) + (
        weights if layout.offload_parameters == "cpu" else 0.0
    )
    return CPU_FIXED_BYTES + max(offloaded, _shipped_bytes(load, layout) if load.quantized else 0.0)


def reduce_bucket_elements(hidden: int, *, num_trainable: int) -> int:
    """Gradients that are reduced in one call: hidden^2 as transformers chooses, but at least 16.8 M elements.

    The bucket is allocated whole, so it is never larger than what is trained.
    """
    return max(1, min(max(hidden**2, 2**24), num_trainable))


def checkpoint_bytes(load: Load, *, zero: int, precision: Precision) -> int:
    """One checkpoint: weights as trained (for an adapter only those) and fp32 optimizer states; measured at ZeRO 0 to 2.

    ZeRO-3 keeps only the fp32 masters of what it splits, so there it is less by the weights.
    """
    trained = _trained(load)
    states = ADAM_MOMENT_BYTES + (MASTER_BYTES if zero >= 1 else 0)
    return (BYTES[precision] + states) * trained


def artifact_bytes(load: Load, *, precision: Precision) -> int:
    """What is handed on: the whole model, and the adapter beside it."""
    return BYTES[precision] * (load.num_params + load.num_adapter)
