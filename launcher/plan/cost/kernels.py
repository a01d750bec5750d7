"""One block and one head on one device -> seconds: the roofline of matrix products, attention and element-wise traffic.

DERIVE, pure. A product takes the longer of its arithmetic and its memory traffic; arithmetic runs at the device's share of the
peak, less for a short inner size, for tiles that do not fill the multiprocessors, and for sizes off the tensor cores' grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

from launcher.plan.cost.constants import Constants
from launcher.plan.cost.stack import BACKWARD, Stack
from launcher.plan.cost.work import Work, element_bytes
from launcher.plan.gpus import Gpu

TILE_ROWS, TILE_COLUMNS = 128, 256  # of the products of large matrices
LAUNCH_S = 4e-6
# Flash 1 and 2 were not written for them; a GPU given by its numbers may be one.
NEWER_THAN_FLASH_2 = frozenset({"hopper", "hopper_pcie", "blackwell", "blackwell_ultra", "unknown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Seconds of one block in one direction."""

    matrix_s: float
    attention_s: float
    element_s: float
    launch_s: float  # what the host needs to launch it; the device waits where this is longer
    alone: bool = False  # the host is the device: it launches first and computes then

    @property
    def device_s(self) -> float:
        return self.matrix_s + self.attention_s + self.element_s

    @property
    def total_s(self) -> float:
        return self.device_s + self.launch_s if self.alone else max(self.device_s, self.launch_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Its passes, and the sums over them: every layout with this block asks for those."""

    forward: Pass
    backward: Pass
    recompute: Pass
    matrix_s: float
    attention_s: float
    element_s: float
    waiting_s: float  # for the host's launches
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, the arithmetic it is used with, and the constants."""

    gpu: Gpu
    arithmetic: str
    constants: Constants
    _products: dict[tuple[float, float, float], float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def memory_bytes_s(self) -> float:
        return self.gpu.memory_gbs * 1e9 * self.constants.memory_share

    @property
    def peak_16bit(self) -> float:
        return self.gpu.tflops_16bit * 1e12

    @property
    def gain(self) -> float:
        """Of a product over one in 16 bit."""
        if self.arithmetic == "fp4":
            return self.constants.fp4_share * self.gpu.fp4_ratio
        if self.arithmetic == "fp8":
            return self.constants.fp8_gain if self.gpu.fp8_ratio > 1 else 1.0
        if self.arithmetic == "tf32":
            return self.gpu.tf32_ratio
        return self.gpu.fp32_ratio if self.arithmetic == "fp32" else 1.0

    @property
    def is_cpu(self) -> bool:
        return self.gpu.generation == "cpu"

    def product(self, rows: float, columns: float, inner: float) -> float:
        """Seconds of (rows x inner) times (inner x columns). Layouts share most of theirs: each is worked out once."""
        sizes = (rows, columns, inner)
        if sizes not in self._products:
            self._products[sizes] = self._product_seconds(rows, columns, inner)
        return self._products[sizes]

    def _product_seconds(self, rows: float, columns: float, inner: float) -> float:
        share = self.constants.matrix(self.gpu.generation) * (1.0 if self.is_cpu else self._filled(rows, columns, inner))
        arithmetic = 2 * rows * columns * inner / (self.peak_16bit * self.gain * share)
        moved = element_bytes(self.arithmetic) * (rows * columns + rows * inner + columns * inner)
        return max(arithmetic, moved / self.memory_bytes_s) + LAUNCH_S

    def _filled(self, rows: float, columns: float, inner: float) -> float:
        """Share of a GPU's arithmetic that is at work; a CPU has no tiles to fill."""
        multiprocessors, constants = self.gpu.multiprocessors, self.constants
        down, across = ceil(rows / TILE_ROWS), ceil(columns / TILE_COLUMNS)
        waves = ceil(down * across / multiprocessors)
        full = rows * columns / (TILE_ROWS * TILE_COLUMNS) / (waves * multiprocessors)
        depth = inner / (inner + constants.half_depth * multiprocessors / 108 * self.gain)
        return full * depth * _alignment(columns, inner, constants)


def _alignment(columns: float, inner: float, constants: Constants) -> float:
    if columns % 8 or inner % 8:
        return constants.align_8
    return constants.align_64 if columns % 64 or inner % 64 else 1.0


def block_seconds(work: Work, device: Device, stack: Stack) -> Block:
    """Forward, backward and recomputed pass of one block and micro-batch on one tensor rank, without communication."""
    constants = device.constants
    sizes = [(columns, inner) for columns, inner in _matrices(work)]
    forward = sum(device.product(work.tokens, columns, inner) for columns, inner in sizes)
    backward = sum(device.product(work.tokens, inner, columns) for columns, inner in sizes)
    if work.trained == "all":
        backward += sum(device.product(columns, inner, work.tokens) for columns, inner in sizes)
    slow = constants.deepspeed if stack.deepspeed and (work.zero > 0 or work.pp > 1) else 1.0
    slow *= constants.deepspeed_zero3 if stack.deepspeed and work.zero == 3 else 1.0
    attention, attention_back = _attention(work, device)
    elements = _element_bytes(work, stack, sizes) * constants.elements / device.memory_bytes_s
    unpack = _unpack_seconds(work, device, sizes)
    launch = _launch_seconds(work, device, stack)

    def one(matrix: float, attention: float, element: float, launch: float) -> Pass:
        return Pass(
            matrix_s=slow * matrix + unpack,
            attention_s=slow * attention,
            element_s=slow * element,
            launch_s=launch,
            alone=device.is_cpu,
        )

    ahead = one(forward, attention, elements, launch)
    nothing = Pass(matrix_s=0.0, attention_s=0.0, element_s=0.0, launch_s=0.0)
    again = {
        "none": nothing,
        "all": ahead,
        "attention": one(-unpack / slow, attention, 0.0, 0.0),
        "operations": one(forward / 2, 0.0, elements, 0.0),
    }
    back = 2.0 if work.trained == "all" else 1.2
    return _block(ahead, one(backward, attention_back, BACKWARD * elements, back * launch), again[work.recomputes])


def _block(*passes: Pass) -> Block:
    forward, backward, recompute = passes
    return Block(
        forward=forward,
        backward=backward,
        recompute=recompute,
        matrix_s=sum(one.matrix_s for one in passes),
        attention_s=sum(one.attention_s for one in passes),
        element_s=sum(one.element_s for one in passes),
        waiting_s=sum(one.total_s - one.device_s for one in passes),
        total_s=sum(one.total_s for one in passes),
    )


def head_seconds(work: Work, device: Device) -> float:
    """Forward and backward pass of the head and the loss, of one micro-batch."""
    shape, tokens, vocab = work.shape, work.tokens, work.shape.vocab / work.tp
    if not work.loss:
        return 0.0
    forward = device.product(tokens, vocab, shape.hidden)
    inputs = device.product(tokens, shape.hidden, vocab)
    weights = device.product(vocab, shape.hidden, tokens) if work.trained != "adapter" else 0.0
    return forward + inputs + weights + device.constants.loss_bytes * tokens * vocab / device.memory_bytes_s


def _matrices(work: Work) -> Iterator[tuple[float, float]]:
    """(columns, inner) of the products of one block as they run: queries, keys and values in one, gate and up in one."""
    shape, tp = work.shape, work.tp
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield (query + 2 * key_value) // tp, shape.hidden
    yield shape.hidden, query // tp
    yield (2 if shape.gated else 1) * shape.ffn // tp, shape.hidden
    yield shape.hidden, shape.ffn // tp


def _attention(work: Work, device: Device) -> tuple[float, float]:
    """Forward and backward. Flash kernels skip the future half of the scores; eager attention computes all of them."""
    shape, constants, peak = work.shape, device.constants, device.peak_16bit
    if work.arithmetic in ("fp32", "tf32") or device.is_cpu:
        peak *= device.gain
    rows = work.tokens * work.sp / work.row_tokens
    scores = rows * work.row_tokens**2 / work.sp / work.tp  # for each unit of width
    width = shape.heads * shape.head_dim
    if work.attention == "eager":
        speed = peak * constants.batched_product * (1.0 if shape.head_dim % 8 == 0 else constants.align_8)
        softmax = constants.softmax_passes * 2 * scores * shape.heads / device.memory_bytes_s
        return 4 * scores * width / speed + softmax, 8 * scores * width / speed + 1.3 * softmax
    share: float = getattr(constants, work.attention)
    if work.attention != "cudnn" and device.gpu.generation in NEWER_THAN_FLASH_2:
        share *= constants.older_kernel
    speed = peak * share * (1.0 if shape.head_dim >= 128 else 0.8)
    return 2 * scores * width / speed, 5 * scores * width / (speed * constants.backward_attention)


def _element_bytes(work: Work, stack: Stack, sizes: list[tuple[float, float]]) -> float:
    """Bytes that the element-wise operations of one block move, forward."""
    shape, tp = work.shape, work.tp
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norm = stack.layer_norm if shape.layer_norm else stack.rms_norm
    outside = shape.hidden * (shape.norms_per_block * norm + 2 * stack.residual)
    rope = 0.0 if shape.learned_positions else stack.rope * (query + key_value)
    inside = stack.heads * (query + 2 * key_value) + rope + (stack.gated if shape.gated else stack.plain) * shape.ffn
    per_token = outside / (tp if stack.norms_split else 1) + inside / tp
    if work.trained != "all":
        per_token += sum(stack.adapter_in * inner + stack.adapter_out * columns for columns, inner in sizes)
    return work.tokens * per_token * (2 if work.arithmetic == "fp32" else 1)


def _unpack_seconds(work: Work, device: Device, sizes: list[tuple[float, float]]) -> float:
    """A pass over a 4-bit base unpacks its weights first."""
    if work.packed is None:
        return 0.0
    passes = device.constants.unpack_gptq if work.packed == "gptq" else device.constants.unpack_nf4
    weights = sum(columns * inner for columns, inner in sizes)
    return passes / 3 * 2.6 * weights / (0.35 * device.gpu.memory_gbs * 1e9)


def _launch_seconds(work: Work, device: Device, stack: Stack) -> float:
    constants = device.constants
    if device.is_cpu:
        return constants.launch_cpu
    if stack.launch == "fused":
        return constants.launch_fused
    eager = constants.launch_packed if work.packed else constants.launch_adapter
    launch = constants.launch_eager if work.trained == "all" and not work.packed else eager
    return max(launch, constants.launch_zero3) if work.zero == 3 else launch
