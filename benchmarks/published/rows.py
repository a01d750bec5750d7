"""One CSV row -> Point: the work it measured, the machine it ran on, the value in our units; or the reason why it is skipped.

The columns are those of benchmarks/data/published_points.csv. A row is scored where `complete` and `measured` are 1 and its
metric is a time or a peak; formula outputs (`measured` 0) are tests of the formulas, not measurements.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.plan.cost.links import Links, links_of
from launcher.plan.cost.of_stage import work_of
from launcher.plan.cost.stack import Stack
from launcher.plan.cost.work import Arithmetic, Attention, Work
from launcher.plan.gpus import GPUS, Gpu
from launcher.plan.shape import ModelShape
from published import ours
from published.ours import Own, is_own, own_of
from published.stacks import FSDP, MEGATRON_CORE, TRANSFORMERS, stack_named

Row = dict[str, str]
PEAK = "peak_mem_GB"
TIMES = ("step_s", "tokens_per_s_per_gpu", "tokens_per_s_total", "tflops_per_gpu", "mfu")
GIB_KINDS = ("nvidia-smi", "GiB", "reserved", "allocated")  # what prints 2^30 bytes as GB
LORA_RANK = 64  # where a row does not say it


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

    @property
    def family(self) -> tuple[str, str, str]:
        """What shares a scale: stack, GPU and arithmetic."""
        return self.stack.name, self.gpu.name, self.work.arithmetic

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
    points: list[Point] = []
    skipped: list[Skipped] = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found = point_of(row)
            (points if isinstance(found, Point) else skipped).append(found)  # type: ignore[arg-type]
    return points, skipped


def point_of(row: Row) -> Point | Skipped:
    reason = _unusable(row)
    if reason:
        return Skipped(
            id=row["id"],
            source=row["source"],
            reason=reason,
            memory=row["metric"] == PEAK or reason == ours.PROMISED,
            missed=row.get("complete") == "1" and _missed(row, reason),
        )
    gpu, stack = _gpu(row), _stack(row)
    links = _links(row, gpu)
    own = own_of(row) if is_own(row) else None
    work = work_of(own.load, own.layout) if own else _work(row, stack)
    rows = _number(row, "global_batch") or _number(row, "micro_batch", 1.0) * work.micro_batches * work.dp
    memory = row["metric"] == PEAK
    value = _peak_bytes(row) if memory else _step_s(row, work, gpu, rows)
    return Point(
        id=row["id"],
        source=row["source"],
        row=row,
        gpu=gpu,
        links=links,
        stack=stack,
        work=work,
        global_rows=rows,
        value=value,
        memory=memory,
        own=own,
    )


def _missed(row: Row, reason: str) -> bool:
    return reason == ours.PROMISED if is_own(row) else _measures(row) and _dense(row)


def _measures(row: Row) -> bool:
    """A step time or a peak that was read, not worked out."""
    return row["metric"] in (*TIMES, PEAK) and bool(_number(row, "value")) and row.get("measured", "1") != "0"


def _dense(row: Row) -> bool:
    return _whole(row, "ep") == 1 and "moe" not in row["model"].lower()


def _unusable(row: Row) -> str:
    if is_own(row) and (reason := ours.unusable(row)):
        return reason
    if not _measures(row):
        known = row["metric"] in (*TIMES, PEAK)
        return "no measured number" if known else f"{row['metric']} is neither a step time nor a peak"
    missing = [name for name in ("layers", "hidden", "heads", "seq") if not _number(row, name)]
    if missing:
        return f"no {', '.join(missing)}"
    if _catalogue_name(row) is None:
        return f"{row['GPU']} is not in the catalogue of GPUs"
    if row.get("complete", "1") == "0":
        return "the row is marked as incomplete"
    return "" if _dense(row) else "experts are not modelled"


def _number(row: Row, name: str, default: float | None = None) -> float | None:
    found = re.match(r"\s*-?\d+(\.\d+)?([eE]-?\d+)?", row.get(name) or "")
    return float(found.group()) if found else default


def _whole(row: Row, name: str, default: int = 1) -> int:
    return int(_number(row, name) or default)


_GPU_NAMES = (
    (r"gb300", "gb300-288gb"),
    (r"gb200", "gb200-189gb"),
    (r"gh200", "gh200-96gb"),
    (r"b300", "b300-288gb"),
    (r"b200", "b200-180gb"),
    (r"h200", "h200-141gb"),
    (r"h100.*pcie", "h100-pcie-80gb"),
    (r"h100.*nvl", "h100-nvl-94gb"),
    (r"h[18]00", "h100-80gb"),
    (r"h20\b", "h20-96gb"),
    (r"a[18]00.*40", "a100-40gb"),
    (r"a[18]00", "a100-80gb"),
    (r"v100.*16", "v100-16gb"),
    (r"v100", "v100-32gb"),
    (r"mi300", "mi300x-192gb"),
    (r"l40s", "l40s-48gb"),
    (r"\bl4\b", "l4-24gb"),
    (r"a10g?\b", "a10g-24gb"),
    (r"a40\b", "a40-48gb"),
    (r"a6000", "a6000-48gb"),
    (r"4090", "rtx4090-24gb"),
    (r"3090", "rtx3090-24gb"),
    (r"\bt4\b", "t4-16gb"),
)


def _catalogue_name(row: Row) -> str | None:
    text = row["GPU"].lower()
    return next((name for pattern, name in _GPU_NAMES if re.search(pattern, text)), None)


def _gpu(row: Row) -> Gpu:
    name = _catalogue_name(row)
    assert name is not None  # _unusable
    gpu = GPUS[name]
    stated = _number(row, "gpu_mem_GB") or 0
    if name == "h100-80gb" and 90 < stated < 100:  # 96 GB of HBM2e and 500 W: 0.86 of the clock
        return replace(gpu, tflops_16bit=0.86 * gpu.tflops_16bit, memory_gbs=2400, usable_gib=stated * 0.98)
    return gpu


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
    text = (row.get("interconnect") or "").lower()
    for pattern, host_gpus, nvlink_gpus, nic_gbs in _NETWORKS:
        if re.search(pattern, text):
            links = replace(links, nic_gbs=nic_gbs)
            links = replace(links, host_gpus=host_gpus) if host_gpus and links.host_gpus <= 8 else links
            return replace(links, nvlink_gpus=nvlink_gpus) if nvlink_gpus else links
    return links


def _stack(row: Row) -> Stack:
    stack = stack_named(row["framework"])
    split = _whole(row, "tp") > 1 and _whole(row, "sp") == _whole(row, "tp")
    return replace(stack, norms_split=True) if split else stack


def _work(row: Row, stack: Stack) -> Work:
    tp, pp, dp = _whole(row, "tp"), _whole(row, "pp"), _whole(row, "dp")
    sequence = 1 if stack.norms_split else _whole(row, "sp")
    shared = max(sequence, _whole(row, "cp"))
    seq = _whole(row, "seq")
    micro = _number(row, "micro_batch") or 1.0
    accum = _number(row, "grad_accum") or max(1.0, (_number(row, "global_batch") or micro * dp) / (micro * dp))
    precision, zero = row["precision"].lower(), _zero(row, stack)
    trained = "all" if _method(row) == "full" else "adapter_and_ends" if "emb" in row["method"] else "adapter"
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
        arithmetic=_arithmetic(precision),
        attention=_attention(row, stack, precision),
        trained=trained,
        adapter_rank=0 if trained == "all" else _rank(row),
        packed="gptq" if "gptq" in row["method"] or "int4" in precision else "nf4" if "qlora" in row["method"] else None,
        recomputes=_recomputes(row["recompute"]),
        virtual=_whole(row, "vpp"),
        ends_fill_stages="count as layers" in row["notes"],
        gradient_bytes=4 if "fp32" in precision.replace("amp fp32", "") or stack.name.startswith("megatron-c") else 2,
        gathers=1 if stack.name == FSDP.name and "2" in row["zero_stage"] else 2,
    )


def _zero(row: Row, stack: Stack) -> int:
    """FSDP shards as ZeRO 3 does; its stage 2 gathers once a micro-batch instead of twice."""
    stage = int(_number(row, "zero_stage") or 0)
    if stack.name == FSDP.name and stage >= 2:
        return 3
    return min(stage, 3)


def _method(row: Row) -> str:
    method = row["method"].lower()
    return "lora" if "lora" in method else "full"


def _rank(row: Row) -> int:
    """Of the adapter, where the row says it."""
    said = re.search(r"(?:rank|\br)\s*=?\s*(\d+)", f"{row.get('method', '')} {row.get('notes', '')}")
    return int(said[1]) if said else LORA_RANK


def _arithmetic(precision: str) -> Arithmetic:
    if "fp4" in precision:
        return "fp4"
    if "fp8" in precision:
        return "fp8"
    if "fp16" in precision:
        return "fp16"
    return "fp32" if precision.startswith("fp32") else "bf16"


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


def _recomputes(text: str) -> str:
    if text.startswith("full"):
        return "all"
    if re.search(r"selective\W*op|per.op|op.sac", text):
        return "operations"
    return "attention" if text.startswith("selective") else "none"


def _shape(row: Row) -> ModelShape:
    hidden, heads = _whole(row, "hidden"), _whole(row, "heads")
    gated = row.get("gated_mlp") != "0"
    return ModelShape(
        family="llama" if gated else "gpt_neox",
        vocab=_whole(row, "vocab", 50_257),
        hidden=hidden,
        layers=_whole(row, "layers"),
        heads=heads,
        kv_heads=_whole(row, "kv_heads", heads),
        head_dim=hidden // heads,
        ffn=_whole(row, "ffn", 4 * hidden),
        positions=_whole(row, "seq"),
        tied=row.get("tied_emb") == "1",
        attention_bias=not gated,
        out_bias=not gated,
        mlp_bias=not gated,
    )


def _peak_bytes(row: Row) -> float:
    kind = row.get("mem_kind") or ""
    unit = 2**30 if any(word in kind for word in GIB_KINDS) else 1e9
    return (_number(row, "value") or 0) * unit


def _step_s(row: Row, work: Work, gpu: Gpu, rows: float) -> float:
    value, metric, world = _number(row, "value") or 0, row["metric"], _whole(row, "n_gpus", work.world)
    tokens = rows * work.row_tokens
    if metric == "step_s":
        return value
    if metric == "tokens_per_s_per_gpu":
        return tokens / (value * world)
    if metric == "tokens_per_s_total":
        return tokens / value
    recomputed = metric == "tflops_per_gpu" and work.recomputes == "all"
    flops = tokens * model_flops(work, recomputed=recomputed)
    peak = 1e12 * value if metric == "tflops_per_gpu" else value / 100 * gpu.tflops_16bit * 1e12
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
