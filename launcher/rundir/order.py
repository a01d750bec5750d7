"""StageOrder: what the ranks of one stage are told besides the job file. Written by the control side, read on the nodes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.rundir.folder import write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOrder:
    """The plan's numbers for one stage. Paths are relative to the run folder."""

    stage: str  # stage name
    kind: str
    world: int  # ranks that must meet; another number is an error: dp x tp x pp x sp
    dp: int  # replicas of the model, each works on its own rows
    tp: int  # ranks that share each matrix
    pp: int  # ranks that hold one group of blocks each
    sp: int  # ranks that share each sequence
    balance: str  # what the pipeline's stages are made equal in: "parameters" | "time"
    device: str  # "cuda" or "cpu"
    precision: str  # "fp32" | "bf16" | "fp16"
    tf32: bool  # fp32 products may be rounded to TF32
    checkpointing: str  # "none" | "full" | "offload": what blocks keep for the backward pass, and where
    zero: int
    micro_batch: int  # sequences per replica and forward pass
    grad_accum: int  # forward passes per optimizer step
    max_tokens: int  # longest row, or block length when packing
    checkpoint_every: int  # optimizer steps; 0: never
    model: str  # folder of the model this stage starts from
    tokenizer: str
    reward_model: str | None  # ppo: folder of the reward model
    model_kind: str  # "causal" or "reward": the kind of model this stage hands on


def write_order(path: Path, order: StageOrder) -> None:
    write_json(path, asdict(order))


def read_order(path: Path) -> StageOrder:
    """TypeError where a field is missing or unknown: the run folder was written by another version."""
    return StageOrder(**json.loads(path.read_text(encoding="utf-8")))
