"""(load, layout) -> Memory: bytes on the fullest rank, by part, at its largest peak; and what lies on the host and the disk.

DERIVE, pure arithmetic. The peaks are the loss (activations and logits are alive), the first gradients behind it, the end of
the backward pass (gradients are whole, and on their way to other ranks) and the optimizer step (copies of the gradients are
alive); ppo has another, the rollout (the gathered actor and its key/value cache), a 4-bit stage one, the scoring of what it
hands on. Under a pipeline every stage is worked out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from math import erf, log, sqrt
from operator import attrgetter
from typing import Any

from launcher.plan.activations import (
    block_inputs_bytes,
    head_parts,
    kept_bytes,
    last_block_parts,
    loss_parts,
    pass_tokens,
    rollout_parts,
)
from launcher.plan.layout import BYTES, Layout
from launcher.plan.load import Load
from launcher.plan.plan import Memory, Precision
from launcher.plan.share import Share, shares_of
from launcher.plan.states import (
    ADAM_MOMENT_BYTES,
    MASTER_BYTES,
    frozen_parameters,
    nvme_bytes,
    offloaded_bytes,
    parameters_by_nvme,
    reduce_parts,
    state_parts,
    states_at_loss,
    states_at_step,
    step_parts,
    weight_bytes,
)
from launcher.units import MIB

# Fitted with the rest on published peaks (benchmarks/planner.py --fit).
CONTEXT_BYTES = 1_612_000_000  # CUDA context, libraries, cuBLAS workspace
COMMUNICATOR_BYTES = 357_000_000  # of each group of ranks
FRAGMENTATION = 1.077  # reserved / allocated
# Spread of true / predicted: 90 % of the published peaks of programs that had no part in the fit lie below 1.10 times the
# prediction (docs/planner.md). It is wider here: no peak of this program on a GPU is among them.
LOG_SIGMA = 0.12
# Resident size of a CPU rank that trains nearly nothing: 539-542 in five layouts, 388 of it its own, the rest libraries.
CPU_FIXED_BYTES = 540 * MIB
# Resident / tensors at the peak of a CPU rank: freed blocks below 32 MiB stay with the process, in holes between others, which
# grow over the first five steps or so. 1.39-1.63 in five layouts of 41 M parameters over 24 steps on quiet cores, 1.22-1.45 in
# eight of 36-97 M parameters over 10 steps; 1.03-1.05 where glibc maps every tensor by itself.
CPU_HEAP = 1.4
SHARD_WASTE = 1.2  # held / shards after loading under ZeRO 3: 1.21 and 1.23 measured with 0.5 and 1 B parameters


def memory_of(load: Load, layout: Layout, *, limit_bytes: int, scale: float = 1.0) -> Memory:
    """The fullest rank at its peak. `disk_bytes` is left to the stage, which knows what it keeps.

    `scale`: measured / predicted peaks of finished runs.
    """
    ranks = _held(load, layout.grad_accum > 1, _at_rest(layout))
    parts = max((_rank_parts(load, layout, held) for held in ranks), key=lambda parts: sum(parts.values()))
    if scale != 1.0:
        parts["calibration"] = round((scale - 1) * sum(parts.values()))
    peak = sum(parts.values())
    return Memory(
        peak_bytes=peak,
        limit_bytes=limit_bytes,
        p_fit=p_fit(peak, limit_bytes),
        parts=parts,
        host_peak_bytes=round(max(_host_bytes(load, layout, held) for held in ranks)),
        disk_bytes=None,
        nvme_bytes=round(max(held.on_nvme for held in ranks)),
    )


_ROWS = ("micro_batch", "grad_accum", "checkpointing")
_AT_REST = tuple(field.name for field in fields(Layout) if field.name not in _ROWS)
_at_rest = attrgetter(*_AT_REST)  # quicker than making a Layout without rows: it is done for each candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is there at one moment of a step whatever the rows of a pass, by part, and its sum."""

    parts: dict[str, float]
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a rank holds whatever the rows of a pass. To be read only: all micro-batches of a layout share it."""

    share: Share
    kept: float  # by one block for each token
    behind: Moment  # when the last backward pass has ended
    at_loss: Moment
    at_head: Moment
    at_step: Moment
    reduced: dict[str, float]
    offloaded: float  # on the host
    on_nvme: float
    loading: float


@lru_cache(maxsize=4096)
def _held(load: Load, several: bool, at_rest: tuple[Any, ...]) -> tuple[Held, ...]:
    """Of the ranks one of which is the fullest. `several`: micro-batches, whose number does not matter otherwise."""
    rest = dict(zip(_AT_REST, at_rest, strict=True))
    layout = Layout(micro_batch=1, grad_accum=2 if several else 1, checkpointing="none", **rest)
    shares = _fullest(shares_of(load.shape, load.kind, load.adapter, tp=layout.tp, pp=layout.pp))
    return tuple(_held_of_rank(load, layout, share) for share in shares)


def _held_of_rank(load: Load, layout: Layout, share: Share) -> Held:
    states, at_loss = state_parts(load, layout, share), states_at_loss(load, layout, share)
    return Held(
        share=share,
        kept=kept_bytes(load, layout),
        behind=_moment(states),
        at_loss=_moment(at_loss),
        at_head=_moment(at_loss | {"buckets": states.get("buckets", 0.0)}),
        at_step=_moment(states_at_step(load, layout, share) | step_parts(load, layout, share)),
        reduced=reduce_parts(load, layout, share),
        offloaded=_offloaded_bytes(load, layout, share),
        on_nvme=nvme_bytes(load, layout, share),
        loading=loading_bytes(layout, share),
    )


def _moment(parts: dict[str, float]) -> Moment:
    return Moment(parts=parts, total=sum(parts.values()))


@lru_cache(maxsize=1024)
def _fullest(shares: tuple[Share, ...]) -> tuple[Share, ...]:
    """The pipeline stages one of which is the fullest: the first has most micro-batches under way, the last the loss.

    Between them the earliest of those with the most blocks: later ones hold fewer micro-batches.
    """
    between = max(shares, key=lambda share: (share.layers, share.num_params, -share.stage))
    return tuple({share.stage: share for share in (shares[0], between, shares[-1])}.values())


def _rank_parts(load: Load, layout: Layout, held: Held) -> dict[str, int]:
    """Bytes by part of one rank at its largest peak."""
    block, share = pass_tokens(load, layout) * held.kept, held.share
    peaks: list[tuple[Moment, dict[str, float]]] = [
        (held.at_loss, loss_parts(load, layout, share, block=block)),
        (held.at_head, head_parts(load, layout, share, block=block)),
        (held.behind, last_block_parts(layout, block=block) | held.reduced),
        (held.at_step, {}),
    ]
    if load.kind == "ppo":
        peaks.append((held.behind, rollout_parts(load, layout)))
    if load.quantized:
        peaks.append((held.behind, {"shipped_models": _shipped_bytes(load, layout)}))
    if not layout.cuda:
        peaks.append((held.behind, {"merged_model": _merged_bytes(load, layout)}))
    moment, rows = max(peaks, key=lambda peak: peak[0].total + sum(peak[1].values()))
    parts = {name: round(size) for name, size in (moment.parts | rows).items() if size >= 1}
    return parts | _fixed_parts(layout, sum(parts.values()))


def _fixed_parts(layout: Layout, allocated_bytes: int) -> dict[str, int]:
    if not layout.cuda:
        return {"heap_holes": round((CPU_HEAP - 1) * allocated_bytes), "fixed": CPU_FIXED_BYTES}
    groups = sum(degree > 1 for degree in (layout.dp, layout.tp, layout.pp, layout.sp))
    fixed = {"fragmentation": round((FRAGMENTATION - 1) * allocated_bytes), "context": CONTEXT_BYTES}
    return fixed | ({"communicators": groups * COMMUNICATOR_BYTES} if groups else {})


def p_fit(peak_bytes: int, limit_bytes: int) -> float:
    """Probability that the true peak is below the limit: true / predicted is log-normal around 1."""
    if limit_bytes <= 0:
        return 0.0
    return round((1 + erf(log(limit_bytes / peak_bytes) / LOG_SIGMA / sqrt(2))) / 2, 3)


def _shipped_bytes(load: Load, layout: Layout) -> float:
    """After a 4-bit stage every rank scores the merged model that is handed on, whole."""
    return BYTES[layout.precision] * load.num_params


def _merged_bytes(load: Load, layout: Layout) -> float:
    """Rank 0 merges an adapter into the whole base in host memory, beside whatever is trained."""
    return BYTES[layout.precision] * load.num_params if load.adapter else 0.0


def _host_bytes(load: Load, layout: Layout, held: Held) -> float:
    """Host memory of one rank beside the device: the imported stack, what is offloaded, models on their way there."""
    if not layout.cuda:
        return 0.0
    kept = block_inputs_bytes(load, layout, held.share) if layout.checkpointing == "offload" else 0.0
    buffers = held.offloaded if layout.offload_parameters == "nvme" else 0.0  # weights pass them on their way to the disk
    return CPU_FIXED_BYTES + max(held.offloaded + kept + _merged_bytes(load, layout), buffers + held.loading)


def _offloaded_bytes(load: Load, layout: Layout, share: Share) -> float:
    """States that rest on the host."""
    weights = weight_bytes(load, layout, share) + BYTES[layout.precision] * (load.num_critic + frozen_parameters(load))
    held = weights / layout.shards if layout.offload_parameters == "cpu" else 0.0
    return held + sum(parameters_by_nvme(load, layout, share).values()) + offloaded_bytes(load, layout, share)


def loading_bytes(layout: Layout, share: Share) -> float:
    """Weights in host memory before they reach the device: this rank's part, which is the whole model without any degree.

    Tensor and pipeline ranks read their part into place; ZeRO 3 reads a module whole and keeps its shard, or writes it to NVMe.
    """
    if layout.offload_parameters == "nvme":
        return _module_bytes(layout, share)
    weights = BYTES[layout.precision] * share.num_params / layout.parameter_shards
    return weights * (SHARD_WASTE if layout.zero == 3 else 1) + _module_bytes(layout, share)


def _module_bytes(layout: Layout, share: Share) -> float:
    """What is whole beside the weights that stay."""
    return BYTES[layout.precision] * share.num_module if layout.zero == 3 else 0.0


def checkpoint_bytes(load: Load) -> int:
    """One checkpoint: fp32 masters and two moments of what is trained (for an adapter only that), the same in every layout."""
    return (MASTER_BYTES + ADAM_MOMENT_BYTES) * (load.num_trainable + load.num_critic_trained)


def artifact_bytes(load: Load, *, precision: Precision) -> int:
    """What is handed on: the whole model, and the adapter beside it."""
    return BYTES[precision] * (load.num_params + load.num_adapter)
