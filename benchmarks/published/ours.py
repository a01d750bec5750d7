"""A row of this program's own runs (framework `zerolaunch`, written by benchmarks/gpu.py) -> the Load and Layout it ran.

Cells are the job's own words, sizes are GiB, and `notes` begin with `family=qwen2 head_dim=64`: what decides parameters and has
no column. The launcher's own arithmetic predicts such a row, so that tiles, sub-groups and offload are as they run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.plan.gpus import GPUS
from launcher.plan.ladder import SAFE
from launcher.plan.layout import Layout
from launcher.plan.load import Load
from launcher.plan.memory import memory_of
from launcher.plan.plan import Checkpointing, Place
from launcher.plan.shape import ModelShape, shape_from_config
from launcher.spec.model import Lora
from launcher.units import GIB

FRAMEWORK = "zerolaunch"
FITS, SKIPPED = "fits", "skipped"  # metrics beside a time and a peak
OUT_OF_MEMORY = "OOM"  # the value of `fits`
RECOMPUTES: dict[Checkpointing, str] = {"none": "none", "full": "full", "offload": "full(kept on the host)"}
PROMISED = "out of memory, and the plan had said that it fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    load: Load
    layout: Layout


def is_own(row: Mapping[str, str]) -> bool:
    return row["framework"].lower().startswith(FRAMEWORK)


def own_of(row: Mapping[str, str]) -> Own:
    """ValueError or KeyError where the row was not written by benchmarks/gpu.py."""
    rank = re.search(r"lora r(\d+)", row["method"])
    load = Load(
        shape=_shape(row),
        kind="sft" if rank else "pretrain",
        adapter=Lora(rank=int(rank[1])) if rank else None,
        quantized=False,
        eager=row["attn"] == "eager",
        row_tokens=int(row["seq"]),
        answer_tokens=0,
    )
    layout = Layout(
        dp=int(row["dp"]),
        tp=int(row["tp"]),
        pp=int(row["pp"]),
        sp=int(row["sp"]),
        zero=int(row["zero_stage"]),
        precision=row["precision"],  # type: ignore[arg-type]
        checkpointing=next(word for word, cell in RECOMPUTES.items() if cell == row["recompute"]),
        offload_optimizer=_place(row, "optimizer"),
        offload_parameters=_place(row, "param"),
        micro_batch=int(row["micro_batch"]),
        grad_accum=int(row["grad_accum"]),
        cuda=row["GPU"] != "cpu",
    )
    return Own(load=load, layout=layout)


def offload_cell(layout: Layout) -> str:
    places = {"optimizer": layout.offload_optimizer, "param": layout.offload_parameters}
    return " ".join(f"{name}={place}" for name, place in places.items() if place != "none") or "none"


def _place(row: Mapping[str, str], name: str) -> Place:
    found = re.search(rf"\b{name}=(cpu|nvme)", row["offload"])
    return found[1] if found else "none"  # type: ignore[return-value]


def shape_note(shape: ModelShape) -> str:
    return f"family={shape.family} head_dim={shape.head_dim}"


def _shape(row: Mapping[str, str]) -> ModelShape:
    family, head_dim = re.search(r"\bfamily=(\w+)", row["notes"]), re.search(r"\bhead_dim=(\d+)", row["notes"])
    if family is None or head_dim is None:
        raise ValueError(f"{row['id']}: notes tell no family and no head_dim")
    config: dict[str, object] = {
        "model_type": family[1],
        "vocab_size": int(row["vocab"]),
        "hidden_size": int(row["hidden"]),
        "num_hidden_layers": int(row["layers"]),
        "num_attention_heads": int(row["heads"]),
        "num_key_value_heads": int(row["kv_heads"]),
        "head_dim": int(head_dim[1]),
        "intermediate_size": int(row["ffn"]),
        "max_position_embeddings": int(row["seq"]),
        "tie_word_embeddings": row["tied_emb"] == "1",
    }
    return shape_from_config(config, file=row["id"])


def limit_bytes(row: Mapping[str, str]) -> int:
    """What the driver told of the GPU; else the catalogue's."""
    return round(float(row["gpu_mem_GB"]) * GIB) if row["gpu_mem_GB"] else GPUS[row["GPU"]].usable_bytes


def unusable(row: Mapping[str, str]) -> str:
    """Why a row of ours is neither a time nor a peak to score; empty where it is. PROMISED counts as an error."""
    if row["metric"] == SKIPPED:
        return "could not be measured: its notes say why"
    if row["GPU"] == "cpu":
        return "measured on a CPU, where only the benchmark itself is tested"
    if row["metric"] != FITS:
        return ""
    own = own_of(row)
    told = memory_of(own.load, own.layout, limit_bytes=limit_bytes(row)).p_fit
    return PROMISED if (told or 0) >= SAFE else "out of memory, as the plan had said it may"
