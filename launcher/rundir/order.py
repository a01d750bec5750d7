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
    world: int  # ranks that must meet; another number is an error
    device: str  # "cuda" or "cpu"
    precision: str  # "fp32" | "bf16" | "fp16"
    checkpointing: str  # "none" | "full"
    zero: int
    micro_batch: int  # sequences per rank and forward pass
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
