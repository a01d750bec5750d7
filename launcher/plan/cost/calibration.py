"""(Figures, device) -> Calibration -> Rates: numbers by which the time model tells the measured seconds. DERIVE, pure.

On a GPU the speeds of the hardware are replaced: products, memory, links, attention. How the software uses them was fitted on
published runs and stays. For CPUs nothing was published, so that the software's part is measured too: what a block moves and
launches, the loss, Adam. A CPU rank's numbers are those of its share of the cores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from statistics import median

from launcher.plan.cost.constants import PUBLISHED, Constants
from launcher.plan.cost.figures import AttentionPass, BlockPass, Collective, Figures, Product
from launcher.plan.cost.kernels import LAUNCH_S, Device, block_seconds, head_seconds
from launcher.plan.cost.links import Links
from launcher.plan.cost.rates import Rates, catalogue_rates
from launcher.plan.cost.stack import OURS
from launcher.plan.cost.work import Arithmetic, Work
from launcher.plan.gpus import Gpu
from launcher.plan.plan import Machine
from launcher.plan.shape import ModelShape

ALONE = replace(OURS, deepspeed=False)
LEAST_LATENCY_S = 1e-6
LEAST_ELEMENTS, MOST_ELEMENTS = 0.05, 20.0
MOST_SHARE = 1.0  # of the peak: no attention is faster
QUIET = 0.8  # share of its cores that a rank has at least where nothing else works
MOST_RANKS = 1024
# What a number of a GPU or a link can be: no device is outside. Constants are within a factor FAR of the shipped ones.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "usable_gib": (0.1, 10_000),
    "tflops_16bit": (1e-4, 100_000),
    "memory_gbs": (1e-2, 100_000),
    "nvlink_gbs": (1e-3, 10_000),
    "nvlink_gpus": (1, 1024),
    "host_gpus": (1, 1024),
    "pcie_gbs": (1e-3, 1000),
    "nic_gbs": (1e-3, 1000),
    "multiprocessors": (1, 10_000),
    "watts": (0.1, 10_000),
    "usd_per_hour": (1e-6, 10_000),
    "fp32_ratio": (1e-3, 100),
    "tf32_ratio": (1e-3, 100),
    "fp8_ratio": (0.1, 100),
    "fp4_ratio": (0.1, 100),
}
FAR = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured, as fields of Gpu, Links and Constants that take the place of the catalogue's."""

    device: str  # device_name
    measured: str  # when, as ISO 8601 in UTC; names this calibration
    ranks: int  # that shared the machine
    gpu: Mapping[str, float]
    links: Mapping[str, float]
    constants: Mapping[str, float]
    disturbed: float = 0.0  # share of the cores that other programs took meanwhile, where it is more than QUIET leaves


def device_name(machine: Machine) -> str:
    """`h100-80gb`, `cpu-16`, or the driver's name of a GPU nobody knows: also the name of its file."""
    if machine.device == "cpu":
        return f"cpu-{machine.cores}"
    return re.sub(r"[^a-z0-9.]+", "-", (machine.gpu or "gpu").lower()).strip("-.")


def calibrated_rates(calibration: Calibration, machine: Machine, rates: Rates) -> Rates:
    """The machine's rates with the measured numbers; `rates`: what is known of it without. Its `calibration` is unchanged."""
    gpu = rates.gpu or stand_in(machine)
    numbers = dict(calibration.gpu)
    if machine.device == "cpu":  # fewer ranks have more cores each
        share = calibration.ranks / machine.slots
        numbers |= {name: share * numbers[name] for name in ("tflops_16bit", "memory_gbs") if name in numbers}
    measured = replace(gpu, **numbers)  # type: ignore[arg-type]
    links = rates.links or catalogue_rates(machine, gpu=gpu).links
    assert links is not None
    return replace(
        rates,
        gpu=measured,
        links=replace(links, **calibration.links),  # type: ignore[arg-type]
        constants=replace(rates.constants, **calibration.constants),
        peak_tflops=None if machine.device == "cpu" or rates.gpu is None else gpu.tflops_16bit,
        basis=calibration.measured,
        disturbed=calibration.disturbed,
    )


def stand_in(machine: Machine) -> Gpu:
    """A GPU that is not in the catalogue, before it is measured."""
    return Gpu(
        name=machine.gpu or "GPU",
        generation="ampere",
        usable_gib=machine.memory_bytes / 2**30,
        tflops_16bit=100.0,
        memory_gbs=1000.0,
        nvlink_gbs=0.0,
        nvlink_gpus=1,
        pcie_gbs=machine.pcie_gbs or 16.0,
        nic_gbs=1.5,
        multiprocessors=108,
        watts=0.0,
        usd_per_hour=0.0,
        bf16=machine.bf16,
    )


def calibration_of(figures: Figures, machine: Machine, *, measured: str) -> Calibration:
    """The numbers that make products, attention, memory and collectives take as long as measured."""
    known = catalogue_rates(machine)
    gpu = known.gpu or replace(stand_in(machine), multiprocessors=figures.multiprocessors)
    device = replace(gpu, **_device_numbers(figures, gpu, known.constants))  # type: ignore[arg-type]
    constants = _attention_numbers(figures.attention, device, known.constants)
    links = known.links or catalogue_rates(machine, gpu=gpu).links
    assert links is not None
    sent, latency = _link_numbers(figures, links, known.constants)
    if device.generation == "cpu":
        constants |= {"collective_s": latency} if latency else {}
        constants |= _software_numbers(figures, device, replace(known.constants, **constants))
    else:
        adam = figures.world * known.constants.optimizer_bytes * figures.adam.parameters / figures.adam.seconds
        constants["host_gbs"] = adam / 1e9
    changed = {name: value for name, value in asdict(device).items() if value != getattr(gpu, name)}
    if known.gpu is None:
        changed["multiprocessors"] = figures.multiprocessors
    return Calibration(
        device=device_name(machine),
        measured=measured,
        ranks=figures.world,
        gpu=_rounded(changed),
        links=_rounded(sent),
        constants=_rounded(constants),
        disturbed=_disturbed(figures.had_cores),
    )


def _disturbed(had_cores: float | None) -> float:
    return round(1 - had_cores, 2) if had_cores is not None and had_cores < QUIET else 0.0


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """Within the bounds that a file has to keep: noise can measure a link that sends more for less."""
    found = {}
    for name, value in numbers.items():
        least, most = _bounds(name)
        kept = min(most, max(least, value))
        found[name] = kept if isinstance(kept, int) else float(f"{kept:.4g}")
    return found


def _fitted(start: float, seconds: float, predicted: Callable[[float], float]) -> float:
    """The number that predicts `seconds`, where a larger one predicts fewer."""
    for _ in range(8):
        start *= predicted(start) / seconds
    return start


def _device_numbers(figures: Figures, gpu: Gpu, constants: Constants) -> dict[str, float]:
    low = [one for one in figures.products if one.precision != "fp32"]
    full = [one for one in figures.products if one.precision == "fp32"]
    tflops = median(_fitted(gpu.tflops_16bit, one.seconds - LAUNCH_S, _product(one, gpu, constants)) for one in low)
    faster = replace(gpu, tflops_16bit=tflops)
    ratio = median(_fitted(gpu.fp32_ratio, one.seconds - LAUNCH_S, _product(one, faster, constants)) for one in full)
    memory = figures.memory.bytes / figures.memory.seconds / 1e9 / constants.memory_share
    return {"tflops_16bit": tflops, "fp32_ratio": ratio, "memory_gbs": memory}


def _product(one: Product, gpu: Gpu, constants: Constants) -> Callable[[float], float]:
    """Seconds of its arithmetic by the peak (16 bit) or its ratio (fp32); a memory without limit hides nothing of it."""
    name = "fp32_ratio" if one.precision == "fp32" else "tflops_16bit"

    def seconds(number: float) -> float:
        known = replace(gpu, memory_gbs=1e12, **{name: number})  # type: ignore[arg-type]
        device = Device(gpu=known, arithmetic=one.precision, constants=constants)
        return device.product(one.rows, one.columns, one.inner) - LAUNCH_S

    return seconds


def _attention_numbers(one: AttentionPass, gpu: Gpu, constants: Constants) -> dict[str, float]:
    work = _work(one.precision, rows=one.rows, tokens=one.tokens, heads=one.heads, head_dim=one.head_dim)

    def block(**changes: float) -> tuple[float, float]:
        device = Device(gpu=gpu, arithmetic=work.arithmetic, constants=replace(constants, **changes))
        passes = block_seconds(work, device, ALONE)
        return passes.forward.attention_s, passes.backward.attention_s

    ahead = min(MOST_SHARE, _fitted(constants.flash2, one.forward_s, lambda share: block(flash2=share)[0]))
    back_s = max(one.backward_s, one.forward_s)
    back = _fitted(constants.backward_attention, back_s, lambda share: block(flash2=ahead, backward_attention=share)[1])
    return {"flash2": ahead, "backward_attention": back}


def _link_numbers(figures: Figures, links: Links, constants: Constants) -> tuple[dict[str, float], float | None]:
    """Of the links between ranks and to the host, and the seconds of a collective of nothing; None with one rank."""
    copies, found = figures.host_copies, {}
    if copies is not None:
        found["pcie_gbs"] = copies.bytes / max(copies.up_s, copies.down_s) / 1e9 / constants.pcie_share
    if not figures.collectives:
        return found, None
    world, fits = figures.world, []
    for kind in dict.fromkeys(one.kind for one in figures.collectives):
        ones = sorted((one for one in figures.collectives if one.kind == kind), key=lambda one: one.bytes)
        fits.append(_line(ones[0], ones[-1], world))
    speed, latency = median(speed for speed, _ in fits), median(latency for _, latency in fits)
    if links.nvlink_gbs and world <= links.nvlink_gpus:
        return found | {"nvlink_gbs": speed / 1e9 / constants.nvlink_share}, latency
    found["pcie_gbs"] = speed / 1e9 / constants.pcie_share  # of a ring: slower than a copy alone
    return (found | {"nic_gbs": speed / 1e9 / constants.nic_share} if figures.device == "cpu" else found), latency


def _line(small: Collective, large: Collective, world: int) -> tuple[float, float]:
    """Bytes a second, and the seconds that are left where nothing is sent."""
    more = large.sent(world) - small.sent(world)
    speed = more / max(large.seconds - small.seconds, 1e-9) if more else large.sent(world) / large.seconds
    speed = max(speed, large.sent(world) / large.seconds)
    return speed, max(LEAST_LATENCY_S, small.seconds - small.sent(world) / speed)


def _software_numbers(figures: Figures, gpu: Gpu, constants: Constants) -> dict[str, float]:
    """Of a CPU, where nothing was published."""
    assert figures.loss is not None, "a CPU measures its loss"
    usual, tiny = figures.blocks
    launch = tiny.seconds / 3  # forward one, backward two
    work = _block_work(usual)
    one = block_seconds(work, Device(gpu=gpu, arithmetic=work.arithmetic, constants=replace(constants, elements=1.0)), ALONE)
    elements = (usual.seconds - usual.core_s - 3 * launch) / (one.forward.element_s + one.backward.element_s)
    loss, memory = figures.loss, gpu.memory_gbs * 1e9
    work = _work(loss.precision, rows=1, tokens=loss.tokens, heads=1, head_dim=64, vocab=loss.vocab)
    device = Device(gpu=gpu, arithmetic=work.arithmetic, constants=replace(constants, loss_bytes=1.0))
    byte_s = head_seconds(work, device) - head_seconds(work, replace(device, constants=replace(constants, loss_bytes=0.0)))
    return {
        "launch_cpu": launch,
        "elements": min(MOST_ELEMENTS, max(LEAST_ELEMENTS, elements)),
        "loss_bytes": loss.seconds / byte_s,
        "optimizer_bytes": figures.adam.seconds * 0.7 * memory / figures.adam.parameters,
    }


def _block_work(one: BlockPass) -> Work:
    head_dim = one.hidden // one.heads
    return _work(one.precision, rows=one.rows, tokens=one.tokens, heads=one.heads, head_dim=head_dim, ffn=one.ffn)


def _work(precision: str, *, rows: int, tokens: int, heads: int, head_dim: int, ffn: int = 64, vocab: int = 64) -> Work:
    """One block of Llama, alone."""
    assert precision in ("fp32", "bf16", "fp16"), precision
    arithmetic: Arithmetic = precision  # type: ignore[assignment]
    shape = ModelShape(
        family="llama",
        vocab=vocab,
        hidden=heads * head_dim,
        layers=1,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        ffn=ffn,
        positions=tokens,
        tied=False,
        attention_bias=False,
        out_bias=False,
        mlp_bias=False,
    )
    return Work(
        shape=shape,
        row_tokens=tokens,
        tokens=rows * tokens,
        micro_batches=1,
        dp=1,
        tp=1,
        pp=1,
        sp=1,
        zero=0,
        arithmetic=arithmetic,
        attention="flash2",
    )


def check_numbers(calibration: Calibration) -> None:
    """ValueError where a number has an unknown name or is outside its bounds, and where the date is none."""
    for title, numbers, kind in (
        ("gpu", calibration.gpu, Gpu),
        ("links", calibration.links, Links),
        ("constants", calibration.constants, Constants),
    ):
        whole = {one.name: one.type == "int" for one in fields(kind) if one.type in ("float", "int")}
        for name, value in numbers.items():
            if name not in whole:
                raise ValueError(f"{title}.{name} is not known")
            check_number(f"{title}.{name}", value, *_bounds(name), whole=whole[name])
    check_number("ranks", calibration.ranks, 1, MOST_RANKS, whole=True)
    check_number("disturbed", calibration.disturbed, 0, 1, whole=False)
    try:
        datetime.fromisoformat(calibration.measured)
    except ValueError:
        raise ValueError(f"measured is {calibration.measured!r}, not a time") from None


def _bounds(name: str) -> tuple[float, float]:
    if name in BOUNDS:
        return BOUNDS[name]
    shipped = getattr(PUBLISHED, name)
    return shipped / FAR, shipped * FAR


def check_number(name: str, value: object, least: float, most: float, *, whole: bool) -> None:
    """ValueError where it is none within the bounds."""
    kind = "a whole number" if whole else "a number"
    right = not isinstance(value, bool) and isinstance(value, int if whole else int | float)
    if not right or not least <= value <= most:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}, not {kind} from {least:g} to {most:g}")
