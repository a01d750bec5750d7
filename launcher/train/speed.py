"""The ranks of this machine -> seconds of what training consists of, on all of them at once. DO, collective.

Products, attention, memory, copies to the device, collectives, Adam; on CPUs a block and the loss. A figure is the median of
some repetitions on the slowest rank: ranks share memory, cores and links, as they do while they train. What the figures mean
for a plan is worked out by the control side (launcher/plan/cost/calibration.py), which reads every one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding

from launcher.train.ranks import Ranks

BUDGET_S = 0.6  # for the repetitions of one figure
FEWEST, MOST = 3, 25
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Figure = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is measured: large enough to show the device's speed, small enough for its memory and a minute."""

    products: tuple[tuple[int, int, int], ...]  # rows, columns, inner
    attention: tuple[int, int, int, int]  # rows, tokens, heads, width of a head
    blocks: tuple[tuple[int, int, int, int, int], ...]  # rows, tokens, hidden, ffn, heads; none: the software's part is known
    loss: tuple[int, int] | None  # tokens, vocabulary
    memory_bytes: int
    collectives: tuple[int, ...]  # bytes
    adam_parameters: int


TINY_BLOCK = (1, 8, 64, 128, 2)  # hardly any work: what is left is the host's launching
CPU = Sizes(
    products=((512, 2048, 768), (512, 768, 2048), (2048, 768, 512)),
    attention=(2, 256, 8, 64),
    blocks=((2, 256, 512, 1408, 8), TINY_BLOCK),
    loss=(512, 8192),
    memory_bytes=64 * 2**20,
    collectives=(2**16, 2**25),
    adam_parameters=2**22,
)
CUDA = Sizes(
    products=((8192, 8192, 8192), (4096, 22016, 4096), (4096, 4096, 11008)),
    attention=(4, 2048, 32, 128),
    blocks=(),
    loss=None,
    memory_bytes=2**30,
    collectives=(2**20, 2**29),
    adam_parameters=2**24,
)
SMALL = Sizes(
    products=((64, 64, 64), (8, 64, 64)),
    attention=(1, 16, 2, 16),
    blocks=((1, 16, 32, 64, 2), TINY_BLOCK),
    loss=(16, 64),
    memory_bytes=2**16,
    collectives=(2**12, 2**14),
    adam_parameters=2**12,
)


@dataclass(slots=True, kw_only=True)
class Stopwatch:
    """Times work that all ranks do at once."""

    device: torch.device
    budget_s: float = BUDGET_S
    wall_s: float = 0.0  # of everything it timed
    cpu_s: float = 0.0

    def usual(self, work: Callable[[], object]) -> float:
        """Median seconds on the slowest rank. Every rank repeats it as often: `work` may be a collective."""
        return self.turns(work)[0]

    def turns(self, *works: Callable[[], object]) -> list[float]:
        """Of several works that take turns, so that they meet the same machine: what they differ by is theirs."""
        for work in works:
            work()
        once_s = self._slowest(sum(self._once(work) for work in works))
        times = max(FEWEST, min(MOST, round(self.budget_s * len(works) / max(once_s, 1e-6))))
        rounds = [[self._once(work) for work in works] for _ in range(times)]
        return [self._slowest(median(seconds)) for seconds in zip(*rounds, strict=True)]

    def _once(self, work: Callable[[], object]) -> float:
        self._settle()
        dist.barrier()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        work()
        self._settle()
        seconds = time.perf_counter() - began_s
        self.wall_s, self.cpu_s = self.wall_s + seconds, self.cpu_s + time.process_time() - began_cpu_s
        return seconds

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _slowest(self, seconds: float) -> float:
        told = torch.tensor([seconds], dtype=torch.float64, device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return float(told)

    def had_cores(self) -> float:
        """Share of the cores that the slowest rank's work has had: the rest went to other programs. Of work on the CPU only."""
        return min(1.0, 1 / self._slowest(self.wall_s * torch.get_num_threads() / self.cpu_s))


def measure(ranks: Ranks, sizes: Sizes, *, budget_s: float = BUDGET_S) -> dict[str, object]:
    """Every figure, with the sizes it was measured at."""
    watch, cuda = Stopwatch(device=ranks.device, budget_s=budget_s), ranks.device.type == "cuda"
    low = "bf16" if not cuda or torch.cuda.is_bf16_supported() else "fp16"
    usual = low if cuda else "fp32"  # what a plan takes unless a job says otherwise
    torch.manual_seed(0)
    figures = {
        "products": [product(watch, size, precision) for precision in (low, "fp32") for size in sizes.products],
        "attention": attention(watch, sizes.attention, usual),
        "blocks": [block(watch, size, usual) for size in sizes.blocks],
        "loss": loss(watch, sizes.loss, usual) if sizes.loss else None,
        "memory": addition(watch, sizes.memory_bytes),
        "host_copies": host_copies(watch, sizes.memory_bytes // 4) if cuda else None,
        "collectives": [one for size in sizes.collectives for one in collectives(watch, size, ranks)],
        "adam": adam(watch, sizes.adam_parameters),
    }
    return {
        "device": torch.cuda.get_device_name(ranks.device) if cuda else "cpu",
        "multiprocessors": torch.cuda.get_device_properties(ranks.device).multi_processor_count if cuda else 1,
        "threads": torch.get_num_threads(),
        "world": ranks.world,
        "had_cores": None if cuda else watch.had_cores(),
        **figures,
    }


def product(watch: Stopwatch, size: tuple[int, int, int], precision: str) -> Figure:
    rows, columns, inner = size
    x, weight = _random(watch, rows, inner, precision=precision), _random(watch, columns, inner, precision=precision)
    seconds = watch.usual(lambda: F.linear(x, weight))
    return {"rows": rows, "columns": columns, "inner": inner, "precision": precision, "seconds": seconds}


def attention(watch: Stopwatch, size: tuple[int, int, int, int], precision: str) -> Figure:
    """Causal, by the kernel that torch chooses."""
    rows, tokens, heads, width = size
    q, k, v = (_random(watch, rows, heads, tokens, width, precision=precision).requires_grad_() for _ in range(3))
    weight = torch.ones_like(q)

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    both_s = watch.usual(lambda: torch.autograd.grad(forward(), (q, k, v), weight))
    with torch.no_grad():
        forward_s = watch.usual(forward)
    shape = {"rows": rows, "tokens": tokens, "heads": heads, "head_dim": width, "precision": precision}
    return {**shape, "forward_s": forward_s, "backward_s": max(both_s - forward_s, 0.0)}


def block(watch: Stopwatch, size: tuple[int, int, int, int, int], precision: str) -> Figure:
    """One block of Llama as the stages run it, forward and backward pass, and its products and its attention alone."""
    rows, tokens, hidden, ffn, heads = size
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=1,
        max_position_embeddings=tokens,
        attn_implementation="sdpa",
    )
    layer = LlamaDecoderLayer(config, 0).to(watch.device, DTYPES[precision])
    inputs = _random(watch, rows, tokens, hidden, precision=precision).requires_grad_()
    angles = LlamaRotaryEmbedding(config).to(watch.device)(inputs, torch.arange(tokens, device=watch.device)[None])
    weight, wanted = torch.ones_like(inputs), [inputs, *layer.parameters()]

    def both() -> None:
        out = layer(inputs, position_embeddings=angles)
        out = out[0] if isinstance(out, tuple) else out
        torch.autograd.grad(out, wanted, weight)

    seconds, core_s = watch.turns(both, _core(watch, layer, rows * tokens, (rows, tokens, heads), precision))
    shape = {"rows": rows, "tokens": tokens, "hidden": hidden, "ffn": ffn, "heads": heads, "precision": precision}
    return {**shape, "seconds": seconds, "core_s": core_s}


def _core(
    watch: Stopwatch, layer: torch.nn.Module, num_tokens: int, shape: tuple[int, int, int], precision: str
) -> Callable[[], None]:
    """The matrix products and the attention of a block, forward and backward pass."""
    rows, tokens, heads = shape
    linears = [module.weight for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {size: _random(watch, num_tokens, size, precision=precision) for weight in linears for size in weight.shape}
    width = linears[0].shape[0] // heads
    q, k, v = (_random(watch, rows, heads, tokens, width, precision=precision).requires_grad_() for _ in range(3))
    ones = torch.ones_like(q)
    for each in inputs.values():
        each.requires_grad_()

    def work() -> None:
        for weight in linears:
            x = inputs[weight.shape[1]]
            torch.autograd.grad(F.linear(x, weight), (x, weight), inputs[weight.shape[0]].detach())
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v), ones)

    return work


def loss(watch: Stopwatch, size: tuple[int, int], precision: str) -> Figure:
    """What follows on the logits, forward and backward pass: the head's products are not in it."""
    tokens, vocab = size
    logits = _random(watch, tokens, vocab, precision=precision).requires_grad_()
    targets = torch.arange(tokens, device=watch.device) % vocab

    def both() -> None:
        torch.autograd.grad(F.cross_entropy(logits.float(), targets), logits)

    return {"tokens": tokens, "vocab": vocab, "precision": precision, "seconds": watch.usual(both)}


def addition(watch: Stopwatch, size_bytes: int) -> Figure:
    """Two large vectors read, one written."""
    x, y, out = (torch.ones(size_bytes // 4, device=watch.device) for _ in range(3))
    return {"bytes": 3 * size_bytes, "seconds": watch.usual(lambda: torch.add(x, y, out=out))}


def host_copies(watch: Stopwatch, size_bytes: int) -> Figure:
    """From pinned host memory to the device and back."""
    host = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device=watch.device)
    up_s = watch.usual(lambda: device.copy_(host, non_blocking=True))
    down_s = watch.usual(lambda: host.copy_(device, non_blocking=True))
    return {"bytes": size_bytes, "up_s": up_s, "down_s": down_s}


def collectives(watch: Stopwatch, size_bytes: int, ranks: Ranks) -> list[Figure]:
    """Over all ranks, where there are several; `bytes` are of the whole vector."""
    if ranks.world == 1:
        return []
    whole = torch.zeros(size_bytes // 4, device=watch.device)
    part = torch.zeros(size_bytes // 4 // ranks.world, device=watch.device)
    parts = [torch.empty_like(part) for _ in range(ranks.world)]
    reduce_s = watch.usual(lambda: dist.all_reduce(whole))
    gather_s = watch.usual(lambda: dist.all_gather(parts, part))
    return [
        {"kind": "all_reduce", "bytes": size_bytes, "seconds": reduce_s},
        {"kind": "all_gather", "bytes": 4 * len(part) * ranks.world, "seconds": gather_s},
    ]


def adam(watch: Stopwatch, parameters: int) -> Figure:
    """The stages' optimizer in host memory, where offload and CPU ranks have it."""
    weight = torch.nn.Parameter(torch.ones(parameters))
    weight.grad = torch.ones(parameters)
    optimizer = torch.optim.AdamW([weight], fused=True)
    return {"parameters": parameters, "seconds": watch.usual(optimizer.step)}


def _random(watch: Stopwatch, *shape: int, precision: str) -> Tensor:
    return torch.randn(*shape, device=watch.device).to(DTYPES[precision])
