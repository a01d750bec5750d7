"""Point -> predicted peak of its fullest GPU: the launcher's own terms for activations and what is fixed, and for the states a
table of what each program keeps. A run of this program is predicted by the launcher itself (plan/memory.py).

Bytes for each parameter, from the programs' sources: DeepSpeed's ZeRO keeps 16-bit weights and gradients, fp32 master weights
and moments, and at the step an fp32 copy of its gradients; BF16_Optimizer as BLOOM used it (2022) kept 16-bit and fp32
gradients; Megatron keeps fp32 gradients and splits the optimizer; FSDP shards everything, and gathers two blocks at a time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from launcher.plan.activations import ADAPTER_KEEPS, EAGER, PIPELINE_COPIES, RECOMPUTED_BLOCKS, Footprint, kept_by_block
from launcher.plan.cost.work import Work, element_bytes
from launcher.plan.memory import COMMUNICATOR_BYTES, CONTEXT_BYTES, FRAGMENTATION, memory_of
from launcher.plan.parameters import block_parameters, vocabulary_parameters
from launcher.plan.plan import Precision
from launcher.plan.shape import block_linears
from launcher.plan.states import LIVE_PARAMETERS, SUB_GROUP_ELEMENTS
from published.ours import Own
from published.rows import Point

# Megatron (arXiv:2205.05198): 34 bytes for each token and hidden unit, 10 of them whole on all tensor ranks; 5 for each score.
MEGATRON = Footprint(rms_norm_bytes=0, rms_norm=2, layer_norm=2, outside=1, heads=1, out=1, gated=4, plain=2, scores=1)
MEGATRON_GATED = replace(MEGATRON, gated=3, outside=0)  # SwiGLU keeps its two inputs and its output; no dropout
COMPOSER = Footprint(rms_norm_bytes=0, rms_norm=2, layer_norm=2, outside=2, heads=1, out=1, gated=4, plain=2, scores=4)
FOOTPRINTS = {"transformers": EAGER, "fsdp": COMPOSER}
BLOCKS_ON_DEVICE = 2  # of inputs that are kept on the host
ALLOCATED_KINDS = ("allocated",)  # what counts neither context nor fragmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakConstants:
    """What the fit may move. The first five are the launcher's own."""

    context: float = CONTEXT_BYTES
    communicator: float = COMMUNICATOR_BYTES
    fragmentation: float = FRAGMENTATION
    recomputed: float = RECOMPUTED_BLOCKS
    adapter_keeps: float = ADAPTER_KEEPS
    kept: float = 1.0  # of the activations that were counted
    logit_bytes: float = 10.92  # transformers: logits in 16 bit, an fp32 copy, its gradient
    logit_bytes_parallel: float = 10.0  # Megatron's vocabulary-parallel loss
    buckets: float = 1.057  # of the 2e9 bytes of DeepSpeed's two buckets
    live: float = 1.011  # of the parameters that ZeRO 3 gathers
    packed: float = 0.56  # bytes of a 4-bit weight with its scales
    adapter: float = 16.46  # bytes of a LoRA parameter with its states
    ends: float = 9.6  # of an embedding or head that is trained beside an adapter


def peak_bytes(point: Point, constants: PeakConstants) -> float:
    """Bytes of the fullest pipeline stage, as the row's kind of reading counts them."""
    work = point.work
    if point.own:
        allocated = _own_bytes(point.own)
    else:
        allocated = max(_stage_bytes(point, stage, constants) for stage in {0, work.pp // 2, work.pp - 1})
    kind = (point.row.get("mem_kind") or "").lower()
    if any(word in kind for word in ALLOCATED_KINDS):
        return allocated
    reserved = allocated * constants.fragmentation
    if "reserved" in kind and "not stated" not in kind:
        return reserved
    groups = sum(degree > 1 for degree in (work.dp, work.tp, work.pp))
    return reserved + constants.context + groups * constants.communicator


def _own_bytes(own: Own) -> float:
    """Tensors: the parts of the launcher's own peak without what the readings add to them."""
    parts = memory_of(own.load, own.layout, limit_bytes=1).parts
    return sum(size for name, size in parts.items() if name not in ("fragmentation", "context", "communicators"))


def _stage_bytes(point: Point, stage: int, constants: PeakConstants) -> float:
    work, shape = point.work, point.work.shape
    layers = _layers(work, stage)
    ends = vocabulary_parameters(shape) * ((stage == 0) + (stage == work.pp - 1 and (work.pp > 1 or not shape.tied)))
    parameters = (layers * block_parameters(shape) + ends) / work.tp
    states = _states(point, parameters, constants)
    logit = constants.logit_bytes_parallel if point.stack.name.startswith("megatron") else constants.logit_bytes
    logits = logit * work.tokens * shape.vocab / work.tp if stage == work.pp - 1 else 0.0
    kept = kept_bytes(point, stage, constants)
    if work.recomputes == "operations":  # one block is whole again where its backward pass begins
        return states + kept + max(logits, _block_bytes(point, constants))
    if work.recomputes != "all":
        return states + kept + logits
    flying = _flying(work, stage)
    buffers = PIPELINE_COPIES * flying * 2 * work.tokens * shape.hidden if point.stack.deepspeed and work.pp > 1 else 0.0
    return states + kept + buffers + max(logits, constants.recomputed * _block_bytes(point, constants))


def kept_bytes(point: Point, stage: int, constants: PeakConstants) -> float:
    """What the blocks of a stage hold for the backward pass: all they save, or their inputs where they are recomputed."""
    work = point.work
    blocks = _flying(work, stage) * _layers(work, stage)
    if work.recomputes == "operations":
        return blocks * _operations_bytes(work)
    if work.recomputes != "all":
        return blocks * _block_bytes(point, constants)
    block = element_bytes(work.arithmetic) * work.tokens * work.shape.hidden
    return (min(blocks, BLOCKS_ON_DEVICE) if "activations" in point.on_host else blocks) * block


def _flying(work: Work, stage: int) -> float:
    """Micro-batches that a stage holds at once, each counted for all its blocks.

    Interleaved, it warms up with 2 (p - 1 - stage) + (v - 1) p pieces, each a v-th of its blocks (arXiv:2104.04473): on the
    first stage 1 + (p - 1) / (p v) times as much as without (arXiv:2205.05198, section 4.2.3).
    """
    if work.virtual == 1:
        return min(work.pp - stage, work.micro_batches)
    pieces = 2 * (work.pp - 1 - stage) + (work.virtual - 1) * work.pp + 1
    return min(pieces / work.virtual, work.micro_batches)


def _layers(work: Work, stage: int) -> float:
    """Blocks of a stage; where the ends count as blocks, the first and the last stage have one less."""
    if work.ends_fill_stages:
        return (work.shape.layers + 2) / work.pp - (stage in (0, work.pp - 1))
    whole, over = divmod(work.shape.layers, work.pp)
    return whole + (stage < over)


def _block_bytes(point: Point, constants: PeakConstants) -> float:
    """What one block keeps of one micro-batch."""
    work, eager = point.work, point.work.attention == "eager"
    footprint = FOOTPRINTS.get(point.stack.name, MEGATRON_GATED if work.shape.gated else MEGATRON)
    precision: Precision = "fp32" if element_bytes(work.arithmetic) == 4 else "bf16"
    kept = kept_by_block(work.shape, footprint, precision, row_tokens=work.row_tokens, eager=eager, tp=work.tp)
    if point.stack.norms_split:
        kept = kept_by_block(work.shape, footprint, precision, row_tokens=work.row_tokens, eager=eager) / work.tp
    if work.recomputes == "attention" and eager:
        kept -= 5 * work.shape.heads * work.row_tokens / work.tp
    adapter = constants.adapter_keeps if work.trained != "all" else 1.0
    return constants.kept * adapter * work.tokens * kept


def _operations_bytes(work: Work) -> float:
    """Of one block whose input, attention and every other matrix product are kept, as torchtitan lists them."""
    shape = work.shape
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    products = query + 2 * key_value + 2 * shape.hidden + (2 if shape.gated else 1) * shape.ffn
    elements = shape.hidden + (query + products / 2) / work.tp
    return element_bytes(work.arithmetic) * work.tokens * elements


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes for each parameter of a rank before ZeRO."""

    weights: float
    gradients: float
    optimizer: float


def _states(point: Point, parameters: float, constants: PeakConstants) -> float:
    work = point.work
    if work.trained != "all":
        return _adapter_states(point, parameters, constants)
    kept, around = _kept_states(point), _around_states(point, parameters, constants)
    if "optimizer" in point.on_host:
        sums = kept.gradients if work.zero < 2 else 0.0  # from ZeRO 2 on gradients go down as they come
        kept = replace(kept, gradients=sums, optimizer=0.0)
    if "parameters" in point.on_host and work.zero == 3:
        kept = replace(kept, weights=0.0)
    return parameters * (kept.weights + kept.gradients + kept.optimizer) + around


def _kept_states(point: Point) -> States:
    work, shards = point.work, point.work.shards
    size, moments = element_bytes(work.arithmetic), _moment_bytes(point)
    if point.stack.name == "fsdp":
        held = 4 if size == 4 or _in_fp32(point) else 2
        return States(weights=held / shards, gradients=held / shards, optimizer=moments / shards)
    if point.stack.name.startswith("megatron") and not point.stack.deepspeed:
        split = shards if work.zero else 1
        return States(weights=size, gradients=4, optimizer=(moments + (4 if size == 2 else 0)) / split)
    masters = moments + 4 if size == 2 or work.zero else moments
    if size == 2 and work.gradient_bytes == 4:
        return States(weights=2, gradients=2 + 4, optimizer=masters / shards)
    zero = max(work.zero, 1)  # in 16 bit with fp32 states a program without ZeRO keeps the same as ZeRO 1 on one rank
    split = shards if work.zero else 1
    if zero == 3:
        return States(weights=size / split, gradients=size / split, optimizer=masters / split)
    copies = 4 / split if size == 2 else 0.0  # at the step
    return States(weights=size, gradients=size / split if zero == 2 else size, optimizer=masters / split + copies)


def _around_states(point: Point, parameters: float, constants: PeakConstants) -> float:
    """Bytes of buckets and gathered parameters."""
    work, shards = point.work, point.work.shards
    if point.stack.name == "fsdp":
        whole = 2 * parameters if work.gathers == 1 else 0.0  # SHARD_GRAD_OP
        return whole + 4 * block_parameters(work.shape) * constants.live
    if point.stack.name.startswith("megatron") and not point.stack.deepspeed:
        return 0.0
    buckets = constants.buckets * (2e9 if point.stack.name != "transformers" else 4 * max(work.shape.hidden**2, 2**24))
    if work.zero < 3 or (work.gradient_bytes == 4 and element_bytes(work.arithmetic) == 2):
        return buckets
    live = constants.live * 2 * 0.55 * min(LIVE_PARAMETERS, parameters) if shards > 1 else 0.0
    step = 0.0 if "optimizer" in point.on_host else 4 * min(SUB_GROUP_ELEMENTS, parameters / shards)
    return step + live + buckets


def _in_fp32(point: Point) -> bool:
    """FSDP's weights, which it casts for each pass: torchtitan's always, others' where they say mixed precision."""
    precision = point.row["precision"].lower()
    return "titan" in point.row["framework"].lower() or bool(re.search("amp|mixed|fp32 (param|master|weight)", precision))


def _moment_bytes(point: Point) -> float:
    """Of the optimizer, in fp32 unless the row says otherwise; torch's own keeps those of 16-bit weights in 16 bit."""
    optimizer, precision = point.row["optimizer"].lower(), point.row["precision"].lower()
    if re.search(r"8.?bit", optimizer):
        return 2
    if "adafactor" in optimizer or optimizer == "sgd":
        return 0
    if re.search("true|pure", precision) or "torchtune" in point.row["framework"].lower():
        return 4 if element_bytes(point.work.arithmetic) == 2 else 8
    return 8


def _adapter_states(point: Point, parameters: float, constants: PeakConstants) -> float:
    """A frozen base and the states of LoRA; the ends where they are trained beside it."""
    work, shape = point.work, point.work.shape
    linears = block_linears(shape)
    adapter = shape.layers * work.adapter_rank * sum(linear.inputs + linear.outputs for linear in linears) / work.tp / work.pp
    ends = 2 * vocabulary_parameters(shape)
    if work.packed:
        base = constants.packed * shape.layers * sum(linear.num_weights for linear in linears) + 2 * ends
    else:
        base = 2 * parameters / (work.shards if work.zero == 3 else 1)
    own = constants.adapter if work.zero == 0 else 4 + (constants.adapter - 4) / work.shards
    live = 2 * constants.live * 2 * 0.55 * min(LIVE_PARAMETERS, parameters) if work.zero == 3 else 0.0
    return base + own * adapter + live + (constants.ends * ends if work.trained == "adapter_and_ends" else 0.0)
