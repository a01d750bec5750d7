"""One CSV row -> Point: the work it measured, the machine it ran on, the value in our units; or the reason why it is skipped.

The columns are those of benchmarks/data/published_points.csv. A row is scored where `complete` and `measured` are 1 and its
metric is a time or a peak; formula outputs (`measured` 0) are tests of the formulas, not measurements.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.errors import LauncherError
from launcher.plan.cost.links import Links, links_of
from launcher.plan.cost.of_stage import work_of
from launcher.plan.cost.stack import Stack
from launcher.plan.cost.work import Arithmetic, Attention, Work
from launcher.plan.gpus import Gpu
from launcher.plan.layout import BYTES
from launcher.plan.shape import ModelShape
from published import ours
from published.devices import gpu_of
from published.models import completed
from published.ours import Own, is_own, own_of
from published.stacks import FSDP, MEGATRON_CORE, TRANSFORMERS, stack_named
from published.table import Row, number, read_rows, whole
from published.words import affirmed, denied, offloaded, recomputes, zero_stage

PEAK = "peak_mem_GB"
TIMES = ("step_s", "tokens_per_s_per_gpu", "tokens_per_s_total", "tflops_per_gpu", "mfu")
OTHER_METRICS = {"mfu_pct": "mfu", "tokens_per_s": "tokens_per_s_total", "tflops": "tflops_per_gpu"}
GIB_KINDS = ("nvidia-smi", "gib", "reserved", "allocated")  # what prints 2^30 bytes as GB
LORA_RANK = 64  # where a row does not say it
SIZES = ("layers", "hidden", "heads", "seq")  # without which nothing can be predicted
MOST = {
    "layers": 10_000,
    "hidden": 10**6,
    "ffn": 10**7,
    "vocab": 10**8,
    "seq": 10**8,
    "n_gpus": 10**7,
    "dp": 10**7,
    "pp": 10_000,
}
EXPERTS = r"moe|mixtral|\ba\d+b|_a\d+b|\d+x\d+b|experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """`value` is seconds of an optimizer step, or bytes of the peak of the fullest GPU."""

    id: str
    source: str
    row: Row
    gpu: Gpu
    links: Links
    stack: Stack
    work: Work
    global_rows: float
    value: float
    memory: bool
    own: Own | None = None  # a run of this program
    on_host: frozenset[str] = frozenset()  # what is offloaded
    assumed: tuple[str, ...] = ()  # what was taken for what the row does not say

    @property
    def group(self) -> tuple[object, ...]:
        """Points that are choices for the same job: model, GPUs, length and arithmetic."""
        work = self.work
        return self.source, work.shape, work.row_tokens, self.gpu.name, work.world, work.arithmetic, work.trained, work.packed

    @property
    def tokens_per_s(self) -> float:
        return self.global_rows * self.work.row_tokens / self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that is not scored. `missed`: it is a complete measurement of a dense decoder, so that it counts as an error."""

    id: str
    source: str
    reason: str
    memory: bool
    missed: bool


def read_points(path: Path) -> tuple[list[Point], list[Skipped]]:
    """NotATable where the file is none."""
    points: list[Point] = []
    skipped: list[Skipped] = []
    for row in read_rows(path):
        found = point_of(row)
        (points if isinstance(found, Point) else skipped).append(found)  # type: ignore[arg-type]
    return points, skipped


def point_of(given: Row) -> Point | Skipped:
    own = _own(given)
    row, shape_said = (given, "") if own else completed(given | _metric(given))
    reason = _unusable(row, own)
    if reason:
        return Skipped(
            id=row["id"],
            source=row["source"],
            reason=reason,
            memory=row["metric"] == PEAK or reason == ours.PROMISED,
            missed=_complete(row) and _missed(row, own, reason),
        )
    (gpu, gpu_said), stack, memory = gpu_of(row), _stack(row), row["metric"] == PEAK
    work = work_of(own.load, own.layout) if own else _work(row, stack, gpu)
    rows = _global_rows(row) or work.tokens * work.sp / work.row_tokens * work.micro_batches * work.dp
    tf32_said = "fp32 taken for TF32" if work.arithmetic == "tf32" and not own else ""
    return Point(
        id=row["id"],
        source=row["source"],
        row=row,
        gpu=gpu,
        links=_links(row, gpu),
        stack=stack,
        work=work,
        global_rows=rows,
        value=_peak_bytes(row) if memory else _step_s(row, work, gpu, rows),
        memory=memory,
        own=own,
        on_host=frozenset() if own else offloaded(row),
        assumed=tuple(said for said in (shape_said, "" if memory else gpu_said, tf32_said) if said),
    )


def _metric(row: Row) -> Row:
    """The cells that say it, in our words and case, where it is one that is scored."""
    text = row["metric"].lower()
    if text == "peak_mem_gib":
        return {"metric": PEAK, "mem_kind": f"{row['mem_kind']} GiB"}
    known = {one.lower(): one for one in (*TIMES, PEAK)} | OTHER_METRICS
    return {"metric": known.get(text, row["metric"])}


def _missed(row: Row, own: Own | None, reason: str) -> bool:
    return reason == ours.PROMISED if own else _measures(row) and _dense(row)


def _own(row: Row) -> Own | None:
    """A run of this program as it was; None for other programs, and where cells are not as benchmarks/gpu.py writes them."""
    try:
        own = own_of(row) if is_own(row) else None
    except (LauncherError, StopIteration, ValueError):
        return None
    if own is None or own.layout.precision not in BYTES:
        return None
    layout = own.layout
    counts = (layout.dp, layout.tp, layout.pp, layout.sp, layout.micro_batch, layout.grad_accum, own.load.row_tokens)
    return own if min(counts) > 0 else None


def _measures(row: Row) -> bool:
    """A step time or a peak that was read, not worked out."""
    return row["metric"] in (*TIMES, PEAK) and bool(number(row, "value")) and not denied(row["measured"])


def _complete(row: Row) -> bool:
    """As the row says; one that says nothing is complete where no size is missing."""
    return not denied(row["complete"]) if row["complete"] else not _missing(row)


def _missing(row: Row) -> list[str]:
    return [name for name in SIZES if not whole(row, name, 0)]


def _dense(row: Row) -> bool:
    return whole(row, "ep") == 1 and not re.search(EXPERTS, row["model"].lower())


def _unusable(row: Row, own: Own | None) -> str:
    """Why a row is not scored; empty where it is."""
    if own and (reason := ours.unusable(row)):
        return reason
    if not _measures(row):
        known = row["metric"] in (*TIMES, PEAK)
        return "no measured number" if known else f"{row['metric'] or 'no metric'} is neither a step time nor a peak"
    if _missing(row):
        return f"no {', '.join(_missing(row))}"
    if denied(row["complete"]):
        return "the row is marked as incomplete"
    return _impossible(row) if _dense(row) else "experts are not modelled"


def _impossible(row: Row) -> str:
    """Sizes and degrees that no run can have had."""
    for name, most in MOST.items():
        if whole(row, name) > most:
            return f"{name} {whole(row, name)} cannot be"
    if whole(row, "heads") > whole(row, "hidden"):
        return "more heads than hidden units"
    if whole(row, "tp") > min(whole(row, "heads"), whole(row, "ffn", whole(row, "hidden"))):
        return "more tensor ranks than heads or columns of the MLP"
    return "more pipeline stages than blocks" if whole(row, "pp") > whole(row, "layers") + 2 else ""


# Hosts and networks that a row's `interconnect` names: GPUs of a host, GPUs that NVLink joins, GB/s of one GPU's network.
# Jean Zay's hosts have two boards of four A100, "NVLink 4 inter-gpu connects, 4 OmniPath links" (BLOOM model card).
_NETWORKS: tuple[tuple[str, int | None, int | None, float], ...] = (
    (r"opa 100gb/s per 8", 8, 4, 50 / 8),
    (r"opa.*4 gpus/node", 4, 4, 12.5 / 4),
    (r"1600\s*gbps", 8, None, 25.0),
    (r"8x hdr 200", 8, None, 25.0),
    (r"400\s*gb/s", 8, None, 50.0),
    (r"100\s*gb", 8, None, 12.5 / 8),
)


def _links(row: Row, gpu: Gpu) -> Links:
    links = links_of(gpu, host_gpus=8)
    text = row["interconnect"].lower()
    for pattern, host_gpus, nvlink_gpus, nic_gbs in _NETWORKS:
        if re.search(pattern, text):
            links = replace(links, nic_gbs=nic_gbs)
            links = replace(links, host_gpus=host_gpus) if host_gpus and links.host_gpus <= 8 else links
            return replace(links, nvlink_gpus=nvlink_gpus) if nvlink_gpus else links
    return links


def _stack(row: Row) -> Stack:
    stack = stack_named(row["framework"])
    says_so = affirmed(row["sp"]) and not whole(row, "sp", 0)  # `True`: Megatron's, over the tensor ranks
    split = whole(row, "tp") > 1 and (says_so or whole(row, "sp") == whole(row, "tp"))
    return replace(stack, norms_split=True) if split else stack


def _global_rows(row: Row) -> float | None:
    """Rows of an optimizer step; some count its tokens."""
    said = number(row, "global_batch")
    return said / whole(row, "seq") if said and "tok" in row["global_batch"].lower() else said


def _work(row: Row, stack: Stack, gpu: Gpu) -> Work:
    tp, pp = whole(row, "tp"), whole(row, "pp")
    sequence = 1 if stack.norms_split else whole(row, "sp")
    shared = max(sequence, whole(row, "cp"))
    dp = whole(row, "dp", 0) or max(1, whole(row, "n_gpus") // (tp * pp * shared))
    seq = whole(row, "seq")
    rows, accum = _global_rows(row), number(row, "grad_accum")
    micro = number(row, "micro_batch") or max(1.0, (rows or dp) / (dp * (accum or 1.0)) if accum else 1.0)
    accum = accum or max(1.0, (rows or micro * dp) / (micro * dp))
    precision, zero, method = row["precision"].lower(), _zero(row, stack), row["method"].lower()
    adapts = "lora" in method
    trained = "all" if not adapts else "adapter_and_ends" if "emb" in method else "adapter"
    return Work(
        shape=_shape(row),
        row_tokens=seq,
        tokens=micro * seq / shared,
        micro_batches=accum,
        dp=dp,
        tp=tp,
        pp=pp,
        sp=shared,
        zero=zero,
        arithmetic=_arithmetic(precision, gpu),
        attention=_attention(row, stack, precision),
        trained=trained,
        adapter_rank=0 if trained == "all" else _rank(row),
        packed="gptq" if "gptq" in method or "int4" in precision else "nf4" if "qlora" in method else None,
        recomputes=_recomputes(row, stack),
        virtual=whole(row, "vpp"),
        ends_fill_stages="count as layers" in row["notes"],
        gradient_bytes=4 if "fp32" in precision.replace("amp fp32", "") or stack.name.startswith("megatron-c") else 2,
        gathers=1 if stack.name == FSDP.name and zero_stage(row) == 2 else 2,
    )


def _zero(row: Row, stack: Stack) -> int:
    """FSDP shards as ZeRO 3 does; its stage 2 gathers once a micro-batch instead of twice."""
    stage = zero_stage(row)
    if stack.name == FSDP.name:
        return 3 if stage is None or stage >= 2 else stage
    return stage or 0


def _rank(row: Row) -> int:
    """Of the adapter, where the row says it."""
    said = re.search(r"(?:rank|\br)\s*=?\s*(\d+)", f"{row.get('method', '')} {row.get('notes', '')}")
    return int(said[1]) if said else LORA_RANK


def _arithmetic(precision: str, gpu: Gpu) -> Arithmetic:
    """fp32 on a GPU with TF32 is taken for TF32, as torch had it by default until 1.11, unless the row denies it."""
    if "fp4" in precision:
        return "fp4"
    if "fp8" in precision:
        return "fp8"
    if "fp16" in precision:
        return "fp16"
    if not re.match(r"(true|pure|full|ieee)?\W*(fp|float)\W?32|tf32|single", precision):
        return "bf16"
    strict = re.search(r"true|ieee|strict|highest|no.?tf32|without tf32", precision)
    return "tf32" if gpu.tf32_ratio > gpu.fp32_ratio and not strict else "fp32"


def _attention(row: Row, stack: Stack, precision: str) -> Attention:
    text = row["attn"].lower()
    if "eager" in text:
        return "eager"
    if "cudnn" in text or "te flash" in text:
        return "cudnn"
    if "flash1" in text:
        return "flash1"
    if "flash" in text or "sdpa" in text:
        return "flash2"
    if stack.name == MEGATRON_CORE.name:
        return "cudnn"
    return "eager" if "fp16" in precision and stack.name != TRANSFORMERS.name else "flash2"


def _recomputes(row: Row, stack: Stack) -> str:
    """`selective` alone is Megatron's, attention; PyTorch's keeps every other product."""
    what = recomputes(row["recompute"])
    return "operations" if what == "attention" and stack.name == FSDP.name else what


def _shape(row: Row) -> ModelShape:
    hidden, heads = whole(row, "hidden"), whole(row, "heads")
    gated = not denied(row["gated_mlp"])
    return ModelShape(
        family="llama" if gated else "gpt_neox",
        vocab=whole(row, "vocab", 50_257),
        hidden=hidden,
        layers=whole(row, "layers"),
        heads=heads,
        kv_heads=whole(row, "kv_heads", heads),
        head_dim=round(hidden / heads),
        ffn=whole(row, "ffn", 4 * hidden),
        positions=whole(row, "seq"),
        tied=affirmed(row["tied_emb"]),
        attention_bias=not gated,
        out_bias=not gated,
        mlp_bias=not gated,
    )


def _peak_bytes(row: Row) -> float:
    kind = row["mem_kind"].lower()
    unit = 2**30 if any(word in kind for word in GIB_KINDS) or "gib" in row["value"].lower() else 1e9
    return (number(row, "value") or 0) * unit


def _step_s(row: Row, work: Work, gpu: Gpu, rows: float) -> float:
    value, metric, world = number(row, "value") or 0, row["metric"], whole(row, "n_gpus", work.world)
    tokens = rows * work.row_tokens
    if metric == "step_s":
        return value
    if metric == "tokens_per_s_per_gpu":
        return tokens / (value * world)
    if metric == "tokens_per_s_total":
        return tokens / value
    recomputed = metric == "tflops_per_gpu" and work.recomputes == "all"
    flops = tokens * model_flops(work, recomputed=recomputed)
    share = value if value <= 1 and "%" not in row["value"] else value / 100  # of the peak: 0.4, 40, 40%
    peak = 1e12 * value if metric == "tflops_per_gpu" else share * gpu.tflops_16bit * 1e12
    return flops / (peak * world)


def model_flops(work: Work, *, recomputed: bool) -> float:
    """Of one token, forward and backward, attention counted whole (Megatron's convention); with the recomputed pass."""
    shape = work.shape
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices = 2 * shape.hidden * query + 2 * shape.hidden * key_value + (3 if shape.gated else 2) * shape.hidden * shape.ffn
    blocks = shape.layers * (2 * matrices + 4 * work.row_tokens * query)
    return 3 * (blocks + 2 * shape.vocab * shape.hidden) + (blocks if recomputed else 0)


def times(points: Iterable[Point]) -> Iterator[Point]:
    return (point for point in points if not point.memory)


def peaks(points: Iterable[Point]) -> Iterator[Point]:
    return (point for point in points if point.memory)
