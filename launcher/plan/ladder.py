"""Rungs: ZeRO stage, checkpointing and offload, cheapest first; and what a layout on one of them needs.

DERIVE, pure. Rungs cost more from top to bottom: ZeRO 0-2 send the same bytes a step, full checkpointing costs a third more
compute, ZeRO 3 sends half as much again, offload waits for the host's memory. Checkpoints rest on the host only where nothing
else fits, or where that is asked for: each block waits for them. search.py times all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.plan.batch import micro_choices
from launcher.plan.layout import Layout
from launcher.plan.load import Load
from launcher.plan.memory import memory_of
from launcher.plan.plan import Checkpointing, Machine, Memory, Place, Precision
from launcher.units import bytes_text

SAFE = 0.95  # p_fit from which a plan counts as one that fits
LIKELY = 0.5  # below it, the predicted peak is above the limit
# One pass over this many tokens keeps a device busy: larger micro-batches bring memory and no speed.
ENOUGH_TOKENS = {"cuda": 32_768, "cpu": 8_192}


_CHECKPOINTED: dict[Checkpointing, str] = {"full": "full checkpointing", "offload": "checkpoints on the host"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    zero: int
    checkpointing: Checkpointing
    offload_optimizer: Place = "none"
    offload_parameters: Place = "none"

    def text(self) -> str:
        words = [f"ZeRO-{self.zero}"]
        words += [_CHECKPOINTED[self.checkpointing]] if self.checkpointing != "none" else []
        words += [f"{name} on the CPU" for name, place in self._offloads() if place == "cpu"]
        words += [f"{name} on NVMe" for name, place in self._offloads() if place == "nvme"]
        return ", ".join(words)

    @property
    def away(self) -> bool:
        """Whether anything rests outside of the device."""
        return self.checkpointing == "offload" or (self.offload_optimizer, self.offload_parameters) != ("none", "none")

    def _offloads(self) -> list[tuple[str, Place]]:
        return [("optimizer", self.offload_optimizer), ("parameters", self.offload_parameters)]


LADDER: tuple[Rung, ...] = (
    *(Rung(zero=zero, checkpointing="none") for zero in (0, 1, 2)),
    *(Rung(zero=zero, checkpointing="full") for zero in (0, 1, 2)),
    Rung(zero=3, checkpointing="none"),
    Rung(zero=3, checkpointing="full"),
    *(Rung(zero=zero, checkpointing="none", offload_optimizer="cpu") for zero in (1, 2)),
    *(Rung(zero=zero, checkpointing="full", offload_optimizer="cpu") for zero in (1, 2)),
    *(Rung(zero=3, checkpointing=kept, offload_optimizer="cpu") for kept in ("none", "full")),
    *(Rung(zero=3, checkpointing=kept, offload_parameters="cpu") for kept in ("none", "full")),
    *(Rung(zero=3, checkpointing=kept, offload_optimizer="cpu", offload_parameters="cpu") for kept in ("none", "full")),
    # Only where asked for: the plan does not know of a disk.
    *(Rung(zero=3, checkpointing=kept, offload_optimizer="nvme") for kept in ("none", "full")),
    *(Rung(zero=3, checkpointing=kept, offload_optimizer="nvme", offload_parameters="cpu") for kept in ("none", "full")),
    *(
        Rung(zero=3, checkpointing=kept, offload_optimizer=place, offload_parameters="nvme")
        for place in ("none", "cpu", "nvme")
        for kept in ("none", "full")
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What the user decided; None leaves the choice to the ladder."""

    zero: int | None
    checkpointing: Checkpointing | None
    offload_optimizer: Place | None
    offload_parameters: Place | None
    micro: int | None
    hpz: int = 1
    ratio: float = 1.0
    quantized_weights: bool = False
    quantized_gradients: bool = False

    def allows(self, rung: Rung) -> bool:
        on_nvme = "nvme" in (rung.offload_optimizer, rung.offload_parameters)
        if on_nvme and "nvme" not in (self.offload_optimizer, self.offload_parameters):
            return False
        pairs = (
            (self.zero, rung.zero),
            (self.checkpointing, rung.checkpointing),
            (self.offload_optimizer, rung.offload_optimizer),
            (self.offload_parameters, rung.offload_parameters),
        )
        return all(wanted is None or wanted == offered for wanted, offered in pairs)


LAST_RUNGS = tuple(replace(rung, checkpointing="offload") for rung in LADDER if rung.checkpointing == "full")


def rungs_for(pinned: Pinned) -> list[Rung]:
    """The allowed ones, cheapest first: the last ones only where they are asked for."""
    return [rung for rung in (LAST_RUNGS if pinned.checkpointing == "offload" else LADDER) if pinned.allows(rung)]


def last_rungs_for(pinned: Pinned, load: Load, machine: Machine) -> list[Rung]:
    """Those that nobody asked for and that are allowed: neither CPU ranks nor ppo can keep checkpoints elsewhere."""
    if pinned.checkpointing is not None or machine.device == "cpu" or load.kind == "ppo":
        return []
    return [rung for rung in LAST_RUNGS if pinned.allows(rung)]


UNPINNED = Pinned(zero=None, checkpointing=None, offload_optimizer=None, offload_parameters=None, micro=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a stage is placed on: the ranks and their degrees, their device, and the rows of one optimizer step."""

    machine: Machine
    dp: int
    precision: Precision
    global_batch: int
    tp: int = 1
    pp: int = 1
    sp: int = 1
    memory_scale: float = 1.0  # measured / predicted peaks of finished runs

    @property
    def world(self) -> int:
        return self.dp * self.tp * self.pp * self.sp

    @property
    def rows(self) -> int:
        """Rows of one replica and optimizer step."""
        return self.global_batch // self.dp

    @property
    def shards(self) -> int:
        """Ranks that ZeRO splits over."""
        return self.dp * self.sp


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A layout and what it needs."""

    ground: Ground
    rung: Rung
    layout: Layout
    memory: Memory


_WRONG = "DeepSpeed trains wrongly in 16 bit at ZeRO 0: bf16 runs Adam one step ahead, fp16 divides by the loss scale"
_FREE = "ZeRO 1 sends the same bytes, keeps the optimizer once and not once a rank, and reports the gradient norm"
_ALONE = "one rank has nobody to split with"
_AT_HOME = "the ranks are CPU processes: everything is in host memory already"
_PIPED = "under a pipeline ZeRO 0 clips by the norm of the first stage alone, and DeepSpeed refuses ZeRO 2 and 3"


def unsuited(rung: Rung, ground: Ground, pinned: Pinned) -> tuple[str, str] | None:
    """Code and text where a rung is not tried, whatever it needs; None: it is tried."""
    to_cpu = rung.offload_optimizer == "cpu" or rung.offload_parameters == "cpu"
    if ground.pp > 1 and rung.zero != 1:
        return "E219", _PIPED
    if rung.zero == 0 and ground.precision != "fp32":
        return "E205", _WRONG
    if rung.zero == 0 and ground.shards > 1 and pinned.zero is None:
        return "E215", _FREE
    lowest = 0 if ground.precision == "fp32" and ground.pp == 1 else 1
    if ground.shards == 1 and rung.zero > lowest and not to_cpu and pinned.zero is None:
        return "E215", _ALONE
    return ("E203", _AT_HOME) if to_cpu and ground.machine.device == "cpu" else None


def layout_of(ground: Ground, rung: Rung, micro: int, pinned: Pinned) -> Layout:
    return Layout(
        dp=ground.dp,
        tp=ground.tp,
        pp=ground.pp,
        sp=ground.sp,
        zero=rung.zero,
        precision=ground.precision,
        checkpointing=rung.checkpointing,
        offload_optimizer=rung.offload_optimizer,
        offload_parameters=rung.offload_parameters,
        micro_batch=micro,
        grad_accum=ground.rows // micro,
        cuda=ground.machine.device == "cuda",
        hpz=pinned.hpz,
        ratio=pinned.ratio,
        quantized_weights=pinned.quantized_weights and rung.zero == 3,
        quantized_gradients=pinned.quantized_gradients and rung.zero == 3,
    )


def best_of(tried: Sequence[Fit]) -> Fit:
    """Of micro-batches, largest first: the largest that fits safely, else that fits at all, else the smallest one."""
    for wanted in (SAFE, LIKELY):
        for fit in tried:
            if fits(fit, wanted):
                return fit
    return tried[-1]


def fit_of(load: Load, ground: Ground, rung: Rung, micro: int, pinned: Pinned) -> Fit:
    layout = layout_of(ground, rung, micro, pinned)
    memory = memory_of(load, layout, limit_bytes=ground.machine.memory_bytes, scale=ground.memory_scale)
    return Fit(ground=ground, rung=rung, layout=layout, memory=memory)


def micros_of(load: Load, ground: Ground, pinned: Pinned) -> list[int]:
    """Micro-batches to try, largest first."""
    return [pinned.micro] if pinned.micro else micros_worth_trying(load, ground)


def micros_worth_trying(load: Load, ground: Ground) -> list[int]:
    """Largest first, none with more tokens than keep a device busy; under a pipeline those that fill it, where there are such.

    A pipeline of pp stages idles (pp - 1) / (accumulation + pp - 1) of the time.
    """
    enough = max(1, ENOUGH_TOKENS[ground.machine.device] * ground.sp // (load.sequences_per_row * load.row_tokens))
    choices = [micro for micro in micro_choices(ground.rows, dp=1) if micro <= enough]
    return [micro for micro in choices if ground.rows // micro >= ground.pp] or choices


def fits(fit: Fit, wanted: float) -> bool:
    """On the device with this probability, and on the host."""
    return fits_device(fit, wanted) and host_fits(fit)


def fits_device(fit: Fit, wanted: float) -> bool:
    return (fit.memory.p_fit or 0) >= wanted


def host_fits(fit: Fit) -> bool:
    """What the ranks of one host keep in its memory beside their GPUs. CPU ranks are judged by their own limit."""
    return not fit.layout.cuda or host_bytes(fit) <= fit.ground.machine.host_memory_bytes


def host_bytes(fit: Fit) -> int:
    """Of all ranks of one host together."""
    return (fit.memory.host_peak_bytes or 0) * fit.ground.machine.slots


def short_of(fit: Fit) -> str:
    """What there is too little of."""
    memory, there = fit.memory, fit.ground.machine.host_memory_bytes
    if not host_fits(fit):
        return f"{bytes_text(host_bytes(fit))} of host memory, {bytes_text(there)} are there"
    need = f"{bytes_text(memory.peak_bytes)} of {bytes_text(memory.limit_bytes)}"
    return f"{need}, fits with probability {memory.p_fit:.2f}"
