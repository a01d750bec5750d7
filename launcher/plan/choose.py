"""(load, what is pinned, machine) -> the layout of one stage: the first rung of a ladder, cheapest first, that fits.

DERIVE, pure. Rungs cost more from top to bottom: ZeRO 0-2 send the same bytes a step, full checkpointing costs a third more
compute, ZeRO 3 sends half as much again, offload waits for the host's memory. The degrees are given, not searched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.plan.batch import micro_choices
from launcher.plan.memory import Layout, Load, memory_of
from launcher.plan.plan import Checkpointing, Machine, Memory, Place, Precision, Rejected
from launcher.units import bytes_text

SAFE = 0.9  # p_fit from which a plan counts as one that fits
LIKELY = 0.5  # below it, the predicted peak is above the limit
# One pass over this many tokens keeps a device busy: larger micro-batches bring memory and no speed.
ENOUGH_TOKENS = {"cuda": 32_768, "cpu": 8_192}
# A pass over fewer tokens leaves a GPU idle; a rung that offers no more is taken only when no other does better.
FEW_TOKENS = {"cuda": 2_048, "cpu": 1}


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
        words += ["optimizer on NVMe"] if self.offload_optimizer == "nvme" else []
        return ", ".join(words)

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

    def allows(self, rung: Rung) -> bool:
        if rung.offload_optimizer == "nvme" and self.offload_optimizer is None:
            return False
        pairs = (
            (self.zero, rung.zero),
            (self.checkpointing, rung.checkpointing),
            (self.offload_optimizer, rung.offload_optimizer),
            (self.offload_parameters, rung.offload_parameters),
        )
        return all(wanted is None or wanted == offered for wanted, offered in pairs)


def rungs_for(pinned: Pinned) -> list[Rung]:
    """The allowed ones, cheapest first. Checkpoints rest on the host only where it is asked for: each block waits for them."""
    ladder = list(LADDER)
    if pinned.checkpointing == "offload":
        ladder = [replace(rung, checkpointing="offload") for rung in LADDER if rung.checkpointing == "full"]
    return [rung for rung in ladder if pinned.allows(rung)]


UNPINNED = Pinned(zero=None, checkpointing=None, offload_optimizer=None, offload_parameters=None, micro=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    layout: Layout
    rung: Rung
    memory: Memory
    rejected: tuple[Rejected, ...]


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


def choose(load: Load, ground: Ground, pinned: Pinned) -> Chosen | None:
    """The first rung that fits safely with enough tokens in a pass; else the best of what fits at all; else None."""
    rejected: list[Rejected] = []
    second: Chosen | None = None
    for rung in rungs_for(pinned):
        refusal = unsuited(rung, ground, pinned)
        if refusal is not None:
            rejected.append(Rejected(plan=rung.text(), code=refusal[0], text=refusal[1]))
            continue
        layout, memory = best_micro(load, ground, rung, pinned)
        offer = Chosen(layout=layout, rung=rung, memory=memory, rejected=())
        if _fits(memory, layout, ground, SAFE) and _busy(load, layout, ground, pinned):
            return replace(offer, rejected=tuple(rejected))
        rejected.append(Rejected(plan=_plan_text(rung, layout), code="E210", text=_short_of(offer, ground)))
        if _fits(memory, layout, ground, LIKELY) and (second is None or _rank(offer) > _rank(second)):
            second = offer
    if second is None:
        return None
    taken = _plan_text(second.rung, second.layout)
    return replace(second, rejected=tuple(item for item in rejected if item.plan != taken))


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
    )


def best_micro(load: Load, ground: Ground, rung: Rung, pinned: Pinned) -> tuple[Layout, Memory]:
    """The largest micro-batch that fits safely, else that fits at all, else the smallest one."""
    limit = ground.machine.memory_bytes
    choices = [pinned.micro] if pinned.micro else micros_worth_trying(load, ground)
    layouts = (layout_of(ground, rung, micro, pinned) for micro in choices)
    tried = [(layout, memory_of(load, layout, limit_bytes=limit)) for layout in layouts]
    for wanted in (SAFE, LIKELY):
        for layout, memory in tried:
            if (memory.p_fit or 0) >= wanted:
                return layout, memory
    return tried[-1]


def micros_worth_trying(load: Load, ground: Ground) -> list[int]:
    """Largest first, none with more tokens than keep a device busy; under a pipeline those that fill it, where there are such.

    A pipeline of pp stages idles (pp - 1) / (accumulation + pp - 1) of the time.
    """
    enough = max(1, ENOUGH_TOKENS[ground.machine.device] * ground.sp // (load.sequences_per_row * load.row_tokens))
    choices = [micro for micro in micro_choices(ground.rows, dp=1) if micro <= enough]
    return [micro for micro in choices if ground.rows // micro >= ground.pp] or choices


def _fits(memory: Memory, layout: Layout, ground: Ground, wanted: float) -> bool:
    return (memory.p_fit or 0) >= wanted and host_fits(memory, layout, ground)


def host_fits(memory: Memory, layout: Layout, ground: Ground) -> bool:
    """What the ranks of one host keep in its memory beside their GPUs. CPU ranks are judged by their own limit."""
    return not layout.cuda or (memory.host_peak_bytes or 0) * ground.machine.slots <= ground.machine.host_memory_bytes


def _busy(load: Load, layout: Layout, ground: Ground, pinned: Pinned) -> bool:
    tokens = layout.micro_batch * load.sequences_per_row * load.row_tokens // ground.sp
    most = micros_worth_trying(load, ground)[0]
    return pinned.micro is not None or layout.micro_batch == most or tokens >= FEW_TOKENS[ground.machine.device]


def _rank(chosen: Chosen) -> tuple[bool, int]:
    """Safe before likely, then more rows in a pass; the earlier rung wins a tie because it is cheaper."""
    return (chosen.memory.p_fit or 0) >= SAFE, chosen.layout.micro_batch


def _plan_text(rung: Rung, layout: Layout) -> str:
    return f"{rung.text()}, micro-batch {layout.micro_batch}"


def _short_of(offer: Chosen, ground: Ground) -> str:
    memory, host = offer.memory, (offer.memory.host_peak_bytes or 0) * ground.machine.slots
    if host > ground.machine.host_memory_bytes and offer.layout.cuda:
        return f"{bytes_text(host)} of host memory, {bytes_text(ground.machine.host_memory_bytes)} are there"
    need = f"{bytes_text(memory.peak_bytes)} of {bytes_text(memory.limit_bytes)}, fits with probability {memory.p_fit:.2f}"
    return need if (memory.p_fit or 0) < SAFE else f"fits, but {offer.layout.micro_batch} rows in a pass leave the GPU idle"
