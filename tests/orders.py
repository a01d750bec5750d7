"""The order of one stage for tests: two data-parallel CPU ranks at ZeRO 1; a test names only the fields it is about."""

from __future__ import annotations

from launcher.rundir.order import StageOrder


def make_order(**changes: object) -> StageOrder:
    fields: dict[str, object] = {
        "stage": "sft",
        "kind": "sft",
        "world": 2,
        "dp": 2,
        "tp": 1,
        "pp": 1,
        "sp": 1,
        "balance": "parameters",
        "device": "cpu",
        "precision": "fp32",
        "tf32": False,
        "checkpointing": "none",
        "zero": 1,
        "micro_batch": 4,
        "grad_accum": 1,
        "max_tokens": 32,
        "checkpoint_every": 0,
        "model": "base/model",
        "tokenizer": "base/tokenizer",
        "reward_model": None,
        "model_kind": "causal",
    }
    return StageOrder(**fields | changes)
