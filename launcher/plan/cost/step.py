"""(Work, Gpu, Links, Stack, Constants) -> StepTime: seconds of one optimizer step, by part. DERIVE, pure.

A step is m micro-batches through the slowest pipeline stage, the bubble of the others, what is sent and not hidden, and the
optimizer. bubble = (pp - 1) / v of one micro-batch's time (interleaved 1F1B, arXiv:2104.04473). ZeRO 0-2 send gradients and
parameters once a step; ZeRO 3 gathers parameters twice and scatters gradients once a micro-batch (arXiv:1910.02054).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from launcher.plan.cost.constants import Constants
from launcher.plan.cost.kernels import Block, Device, block_seconds, head_seconds
from launcher.plan.cost.links import Links
from launcher.plan.cost.stack import Stack
from launcher.plan.cost.work import Work, element_bytes
from launcher.plan.gpus import Gpu
from launcher.plan.parameters import block_sizes, vocabulary_parameters
from launcher.plan.shape import ModelShape, block_linears

PARTS = ("compute", "attention", "elementwise", "loss", "launch", "communication", "bubble", "optimizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds. `parts` add up to `step_s`; `sent` says what communication consists of."""

    step_s: float
    parts: dict[str, float]
    sent: dict[str, float]


def kernels_of(work: Work, device: Device, *, stack: Stack) -> tuple[Block, float]:
    """Seconds of one block and of the head with the loss. Layouts that differ only in replicas or stages share them."""
    return block_seconds(work, device, stack), head_seconds(work, device)


def step_time(
    work: Work,
    gpu: Gpu,
    links: Links,
    *,
    stack: Stack,
    constants: Constants,
    kernels: tuple[Block, float] | None = None,
) -> StepTime:
    """Seconds of one optimizer step of all its micro-batches. `kernels`: where they are known already."""
    if kernels is None:
        kernels = kernels_of(work, Device(gpu=gpu, arithmetic=work.arithmetic, constants=constants), stack=stack)
    block, head = kernels
    tensor = _tensor_seconds(work, links, stack, constants)
    layer = block.total_s + tensor
    layers, stage = _slowest_stage(work, layer, head)
    micro = work.micro_batches
    hop = _hop_seconds(work, links, stack, constants)
    instructions = constants.instruction_s if stack.deepspeed and work.pp > 1 else 0.0
    bubble = (work.pp - 1) / work.virtual * (layers * layer + head / work.pp + 2 * hop) if work.pp > 1 else 0.0
    hops = micro * 2 * hop * constants.hop_exposed * max(1, work.virtual / 2) if work.pp > 1 else 0.0
    computed = micro * (stage + instructions)
    data = _data_seconds(work, links, stack, constants, pass_s=computed / micro)
    optimizer = _optimizer_seconds(work, gpu, constants)
    step = computed + bubble + hops + data + optimizer
    counted = micro * layers
    sent = {"tensor": counted * tensor, "pipeline": hops, "data": data}
    parts = {
        "compute": counted * block.matrix_s,
        "attention": counted * block.attention_s,
        "elementwise": counted * block.element_s,
        "launch": counted * block.waiting_s + micro * instructions,
        "loss": max(0.0, micro * (stage - layers * layer)),  # of a stage without the head, nothing or a rounding error
        "communication": sum(sent.values()),
        "bubble": bubble,
        "optimizer": optimizer,
    }
    return StepTime(step_s=step, parts=parts, sent=sent)


def _slowest_stage(work: Work, layer: float, head: float) -> tuple[float, float]:
    """Blocks of the slowest pipeline stage, and its seconds for one micro-batch with the head where it has it."""
    layers, pp = work.shape.layers, work.pp
    if work.split is not None:
        *before, last = work.split
        slowest = max([(count * layer, count) for count in before] + [(last * layer + head, last)])
        return slowest[1], slowest[0]
    if work.ends_fill_stages:
        blocks = (layers + 2) / pp
        return blocks, max(blocks * layer, (blocks - 1) * layer + head)
    if work.virtual > 1 or layers % pp == 0:
        return layers / pp, layers / pp * layer + head
    most = ceil(layers / pp)
    return most, max(most * layer, (layers // pp) * layer + head)


def _tensor_seconds(work: Work, links: Links, stack: Stack, constants: Constants) -> float:
    """What tensor and sequence ranks wait for in one block: two all-reduces a pass, four exchanges of heads."""
    passes = 3 if work.recomputes == "all" else 2
    shape, size, total = work.shape, element_bytes(work.arithmetic), 0.0
    if work.tp > 1:
        exposed = constants.tensor_exposed_overlapped if stack.overlaps_tensor else constants.tensor_exposed
        sent = 4 * (work.tp - 1) / work.tp * size * work.tokens * shape.hidden
        total += passes * exposed * (sent / links.neighbours(work.tp, constants) + constants.collective_s)
    if work.sp > 1:
        width = 2 * shape.head_dim * (shape.heads + shape.kv_heads) / work.tp
        sent = size * work.tokens * width * (work.sp - 1) / work.sp
        total += passes * (sent / links.exchange(work.sp, constants) + 4 * constants.collective_s)
    return total


def _hop_seconds(work: Work, links: Links, stack: Stack, constants: Constants) -> float:
    """One micro-batch's hidden states from one pipeline stage to the next."""
    if work.pp == 1:
        return 0.0
    sent = element_bytes(work.arithmetic) * work.tokens * work.shape.hidden
    split = work.tp if stack.gathers_hidden or stack.norms_split else 1
    gathered = (work.tp - 1) / work.tp * sent if stack.gathers_hidden else 0.0
    return sent / split / links.hop(work.world, constants) + gathered / links.neighbours(work.tp, constants)


@lru_cache(maxsize=1024)
def _parameters(shape: ModelShape, tp: int, pp: int) -> tuple[float, float]:
    """Of the model, and of the fullest rank before ZeRO."""
    blocks, ends = sum(block_sizes(shape)), vocabulary_parameters(shape)
    of_rank = blocks / pp + ends * (1 if pp > 1 or shape.tied else 2)
    return blocks + ends * (1 if shape.tied else 2), of_rank / tp


def _trained_share(work: Work) -> float:
    """Trained parameters / parameters."""
    return 1.0 if work.trained == "all" else _adapter_share(work.shape, work.adapter_rank)


@lru_cache(maxsize=1024)
def _adapter_share(shape: ModelShape, rank: int) -> float:
    linears = block_linears(shape)
    return rank * sum(linear.inputs + linear.outputs for linear in linears) / sum(linear.num_weights for linear in linears)


def _data_seconds(work: Work, links: Links, stack: Stack, constants: Constants, *, pass_s: float) -> float:
    """What replicas wait for in one step, beyond what hides behind compute. `pass_s`: seconds of one micro-batch."""
    shards = work.shards
    if shards == 1:
        return 0.0
    whole, of_rank = _parameters(work.shape, work.tp, work.pp)
    bandwidth = links.strided(shards, stride=work.tp, constants=constants)
    around = (shards - 1) / shards
    if work.zero == 3:
        return work.micro_batches * _sharded_seconds(work, links, constants, bandwidth, whole / work.tp, pass_s=pass_s)
    trained, size = of_rank * _trained_share(work), element_bytes(work.arithmetic)
    # DeepSpeed joins gradients in buckets and all-reduces them, ZeRO 2 after each micro-batch (stage_1_and_2.py:1695, :2294)
    reduces = 2 if stack.deepspeed or work.zero == 0 else 1
    times = work.micro_batches if stack.deepspeed and work.zero == 2 else 1
    gathered = size * constants.gather_cost if work.zero else 0
    moved = around * trained * (reduces * times * work.gradient_bytes + gathered)
    hidden = stack.overlaps_data and not (stack.deepspeed and work.pp > 1)  # its pipeline engine switches the overlap off
    return moved / bandwidth * (constants.data_exposed if hidden else 1.0)


def _sharded_seconds(
    work: Work, links: Links, constants: Constants, bandwidth: float, parameters: float, *, pass_s: float
) -> float:
    """ZeRO 3, one micro-batch: gathers before both passes and the gradients' scatter, beyond what hides behind compute."""
    shards = work.shards
    around = (shards - 1) / shards
    slower = 1 + shards / constants.shard_scale
    scattered = constants.scatter_cost * around * parameters * work.scatter_bytes * _trained_share(work) / bandwidth
    gathered = constants.gather_cost * around * parameters * work.gather_bytes / bandwidth
    sent = (scattered + gathered) * slower
    if work.gathers > 1:
        near = work.near_ranks if work.near_ranks > 1 else shards
        second = constants.gather_cost * (near - 1) / near * parameters * work.gather_bytes
        speed = links.strided(near, stride=work.tp, constants=constants)
        sent += (work.gathers - 1) * second / speed * (1 + near / constants.shard_scale)
    return max(pass_s + constants.shard_exposed * sent, sent + constants.shard_interference * pass_s) - pass_s


def _optimizer_seconds(work: Work, gpu: Gpu, constants: Constants) -> float:
    """Adam is bound by memory: it reads and writes its states, the master weights and the gradients of the rank's share."""
    _, of_rank = _parameters(work.shape, work.tp, work.pp)
    owned = of_rank * _trained_share(work) / (work.shards if work.zero else 1)
    return constants.optimizer_bytes * owned / (0.7 * gpu.memory_gbs * 1e9) + constants.step_s
