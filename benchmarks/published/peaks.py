"""Point -> predicted peak of its fullest GPU: the launcher's own terms for activations and what is fixed, and for the states a
table of what each program keeps. A run of this program is predicted by the launcher itself (plan/memory.py).

Bytes for each parameter, from the programs' sources: DeepSpeed's ZeRO keeps 16-bit weights and gradients, fp32 master weights
and moments, and at the step an fp32 copy of its gradients; BF16_Optimizer as BLOOM used it (2022) kept 16-bit and fp32
gradients; Megatron keeps fp32 gradients and splits the optimizer; FSDP shards everything, and gathers two blocks at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.plan.activations import ADAPTER_KEEPS, EAGER, PIPELINE_COPIES, RECOMPUTED_BLOCKS, Footprint, kept_by_block
from launcher.plan.cost.work import Work
from launcher.plan.memory import COMMUNICATOR_BYTES, CONTEXT_BYTES, FRAGMENTATION, memory_of
from launcher.plan.parameters import block_parameters, vocabulary_parameters
from launcher.plan.shape import block_linears
from launcher.plan.states import LIVE_PARAMETERS, SUB_GROUP_ELEMENTS
from published.ours import Own
from published.rows import Point

# Megatron (arXiv:2205.05198): 34 bytes for each token and hidden unit, 10 of them whole on all tensor ranks; 5 for each score.
MEGATRON = Footprint(rms_norm_bytes=0, rms_norm=2, layer_norm=2, outside=1, heads=1, out=1, gated=4, plain=2, scores=1)
MEGATRON_GATED = replace(MEGATRON, gated=3, outside=0)  # SwiGLU keeps its two inputs and its output; no dropout
COMPOSER = Footprint(rms_norm_bytes=0, rms_norm=2, layer_norm=2, outside=2, heads=1, out=1, gated=4, plain=2, scores=4)
FOOTPRINTS = {"transformers": EAGER, "fsdp": COMPOSER}
CONTEXT_KINDS = ("nvidia-smi", "GPU memory", "total over GPUs", "")  # what counts the CUDA context
OPERATIONS_KEEP = 0.6  # of a block, where every other product is kept and the rest recomputed (torchtitan)
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
    kind = point.row.get("mem_kind") or ""
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
    if work.recomputes != "all":
        return states + kept + logits
    flying = _flying(work, stage)
    buffers = PIPELINE_COPIES * flying * 2 * work.tokens * shape.hidden if point.stack.deepspeed and work.pp > 1 else 0.0
    return states + kept + buffers + max(logits, constants.recomputed * _block_bytes(point, constants))


def kept_bytes(point: Point, stage: int, constants: PeakConstants) -> float:
    """What the blocks of a stage hold for the backward pass: all they save, or their inputs where they are recomputed."""
    work = point.work
    block = 2 * work.tokens * work.shape.hidden if work.recomputes == "all" else _block_bytes(point, constants)
    return _flying(work, stage) * _layers(work, stage) * block


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
    kept = kept_by_block(work.shape, footprint, "bf16", row_tokens=work.row_tokens, eager=eager, tp=work.tp)
    if point.stack.norms_split:
        kept = kept_by_block(work.shape, footprint, "bf16", row_tokens=work.row_tokens, eager=eager) / work.tp
    if work.recomputes == "attention" and eager:
        kept -= 5 * work.shape.heads * work.row_tokens / work.tp
    if work.recomputes == "operations":
        kept *= OPERATIONS_KEEP
    adapter = constants.adapter_keeps if work.trained != "all" else 1.0
    return constants.kept * adapter * work.tokens * kept


def _states(point: Point, parameters: float, constants: PeakConstants) -> float:
    work, shards = point.work, point.work.shards
    if work.trained != "all":
        return _adapter_states(point, parameters, constants)
    amp = "amp" in point.row["precision"]
    if point.stack.name == "fsdp":
        gathered = 4 * block_parameters(work.shape) * constants.live
        return (4 + 4 + 8 if amp else 2 + 2 + 8) * parameters / shards + gathered
    if point.stack.name.startswith("megatron") and not point.stack.deepspeed:
        return parameters * (2 + 4 + 12 / (shards if work.zero else 1))
    buckets = constants.buckets * (2e9 if point.stack.name != "transformers" else 4 * max(work.shape.hidden**2, 2**24))
    if work.gradient_bytes == 4:
        return parameters * (2 + 2 + 4 + 12 / shards) + buckets
    zero = max(work.zero, 1)  # in 16 bit with fp32 states a program without ZeRO keeps the same as ZeRO 1 on one rank
    if work.zero == 0:
        shards = 1
    if zero == 3:
        live = constants.live * 2 * 0.55 * min(LIVE_PARAMETERS, parameters) if shards > 1 else 0.0
        return 16 * parameters / shards + 4 * min(SUB_GROUP_ELEMENTS, parameters / shards) + live + buckets
    return parameters * (2 + (2 / shards if zero == 2 else 2) + 16 / shards) + buckets


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
