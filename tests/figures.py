"""Figures as the ranks of a known device would measure them: the time model itself, run forwards. One factory for all tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from launcher.plan.cost.constants import Constants
from launcher.plan.cost.figures import (
    AdamStep,
    AttentionPass,
    BlockPass,
    Collective,
    Figures,
    HostCopies,
    LossPass,
    Moved,
    Product,
)
from launcher.plan.cost.kernels import Device, block_seconds, head_seconds
from launcher.plan.cost.stack import OURS
from launcher.plan.cost.work import Work
from launcher.plan.gpus import Gpu
from launcher.plan.shape import ModelShape

ALONE = replace(OURS, deepspeed=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the device truly does; a calibration has to find it."""

    gpu: Gpu
    constants: Constants
    world: int
    link_gbs: float = 1.0  # that reach a rank
    latency_s: float = 1e-4
    adam_s: float = 1e-9  # of one parameter


def figures_of(known: Known, *, precision: str, sizes: tuple[tuple[int, int, int], ...]) -> Figures:
    """`precision` is what attention, the block and the loss are measured in."""
    products = tuple(_product(known, size, each) for each in ("bf16", "fp32") for size in sizes)
    block, tiny = _work(precision, rows=2, tokens=256, heads=8, width=64, ffn=1408), (1, 8, 1, 64, 64)
    passes, small = _passes(known, block), _passes(known, _work(precision, **dict(zip(_NAMES, tiny, strict=True))))
    loss = replace(block, shape=replace(block.shape, vocab=8192))
    device = Device(gpu=known.gpu, arithmetic=precision, constants=known.constants)
    loss_s = head_seconds(loss, device) - head_seconds(
        loss, replace(device, constants=replace(known.constants, loss_bytes=0.0))
    )
    cpu = known.gpu.generation == "cpu"
    blocks = (
        BlockPass(
            rows=2,
            tokens=256,
            hidden=512,
            ffn=1408,
            heads=8,
            precision=precision,
            seconds=passes.forward.total_s + passes.backward.total_s,
            core_s=sum(one.matrix_s + one.attention_s for one in (passes.forward, passes.backward)),
        ),
        BlockPass(
            rows=1,
            tokens=8,
            hidden=64,
            ffn=64,
            heads=1,
            precision=precision,
            seconds=3 * small.forward.launch_s,
            core_s=small.forward.launch_s,
        ),
    )
    return Figures(
        device="cpu" if cpu else "Round GPU",
        multiprocessors=known.gpu.multiprocessors,
        threads=1,
        world=known.world,
        had_cores=1.0 if cpu else None,
        products=products,
        attention=AttentionPass(
            rows=2,
            tokens=256,
            heads=8,
            head_dim=64,
            precision=precision,
            forward_s=passes.forward.attention_s,
            backward_s=passes.backward.attention_s,
        ),
        blocks=blocks if cpu else (),
        loss=LossPass(tokens=512, vocab=8192, precision=precision, seconds=loss_s) if cpu else None,
        memory=Moved(bytes=3 * 2**26, seconds=3 * 2**26 / device.memory_bytes_s),
        host_copies=None if cpu else _copies(known),
        collectives=_collectives(known) if known.world > 1 else (),
        adam=AdamStep(parameters=2**22, seconds=known.adam_s * 2**22),
    )


_NAMES = ("rows", "tokens", "heads", "width", "ffn")


def _product(known: Known, size: tuple[int, int, int], precision: str) -> Product:
    rows, columns, inner = size
    seconds = Device(gpu=known.gpu, arithmetic=precision, constants=known.constants).product(*size)
    return Product(rows=rows, columns=columns, inner=inner, precision=precision, seconds=seconds)


def _passes(known: Known, work: Work):
    return block_seconds(work, Device(gpu=known.gpu, arithmetic=work.arithmetic, constants=known.constants), ALONE)


def _copies(known: Known) -> HostCopies:
    speed = known.gpu.pcie_gbs * 1e9 * known.constants.pcie_share
    return HostCopies(bytes=2**28, up_s=2**28 / speed, down_s=0.9 * 2**28 / speed)


def _collectives(known: Known) -> tuple[Collective, ...]:
    """A ring of all ranks."""
    found = []
    for size in (2**16, 2**25):
        for kind in ("all_reduce", "all_gather"):
            one = Collective(kind=kind, bytes=size, seconds=0.0)
            found.append(replace(one, seconds=known.latency_s + one.sent(known.world) / (known.link_gbs * 1e9)))
    return tuple(found)


def _work(precision: str, *, rows: int, tokens: int, heads: int, width: int, ffn: int) -> Work:
    shape = ModelShape(
        family="llama",
        vocab=64,
        hidden=heads * width,
        layers=1,
        heads=heads,
        kv_heads=heads,
        head_dim=width,
        ffn=ffn,
        positions=tokens,
        tied=False,
        attention_bias=False,
        out_bias=False,
        mlp_bias=False,
    )
    whole = {"dp": 1, "tp": 1, "pp": 1, "sp": 1, "zero": 0, "micro_batches": 1}
    return Work(shape=shape, row_tokens=tokens, tokens=rows * tokens, arithmetic=precision, attention="flash2", **whole)


def as_told(figures: Figures) -> dict[str, object]:
    """As rank 0 writes it."""
    told = asdict(figures)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}
