"""A policy, a reward model and prompts of the smallest size, and run folders of a ppo stage on them.

Both models are drawn with a wide initialisation: scores and probabilities then differ enough that a mistake shows.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from launcher.rundir.folder import RunDir
from launcher.rundir.order import read_order, write_order
from tests.stages.harness import run_ranks
from tests.stages.runs import END, FIRST, HIDDEN, PAD, VOCAB, make_run, make_world, save_rows

STAGE = {
    "reward": "reward",
    "steps": 3,
    "lr": 2e-3,
    "critic_lr": 5e-3,
    "schedule": "constant",
    "warmup": 0,
    "max_new_tokens": 8,
    "rollout": 16,
    "eval_rows": 11,
    "kl_coef": 0.1,
}


def make_ppo_world(folder: Path) -> Path:
    make_world(folder)
    run_ranks(_write, folder, world=1)
    return folder


def _write(folder: Path) -> None:
    save_rows(folder / "ppo" / "train", prompts(40, 1))
    save_rows(folder / "ppo" / "held_out", prompts(16, 2))
    write_policy(folder / "policy")
    write_policy(folder / "gpt2", family="gpt2")
    write_reward(folder / "reward_model")
    write_reward(folder / "gpt2_reward", family="gpt2")
    for name in ("policy", "gpt2", "reward_model", "gpt2_reward"):
        shutil.copytree(folder / "tokenizer", folder / name, dirs_exist_ok=True)


def prompts(count: int, seed: int) -> dict[str, list]:
    """2 to 6 tokens, so that a batch needs left padding."""
    ids = [[FIRST + (seed * 17 + 5 * row + 3 * i) % (VOCAB - FIRST) for i in range(2 + row % 5)] for row in range(count)]
    return {"prompt_ids": ids}


def _config(family: str):
    from transformers import GPT2Config, LlamaConfig

    shared = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD, "initializer_range": 0.3}
    if family == "gpt2":  # learned positions, and dropout 0.1 as published
        return GPT2Config(n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=64, **shared)
    return LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        **shared,
    )


def write_policy(folder: Path, *, family: str = "llama") -> None:
    """Its end token is drawn often enough that every batch holds answers that end and answers that do not."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(_config(family))
    with torch.no_grad():
        model.get_input_embeddings().weight[END] *= 2
    model.save_pretrained(folder)


def write_reward(folder: Path, *, family: str = "llama") -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(6)
    config = _config(family)
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def make_ppo_run(
    world: Path,
    *,
    policy: str = "policy",
    reward: str = "reward_model",
    stage: dict | None = None,
    micro: int = 8,
    **layout: object,
) -> RunDir:
    """A run folder with one ppo stage of 8 sequences a step, 16 prompts an iteration."""
    run = make_run(world, kind="ppo", micro=micro, start=world / policy, stage={**STAGE, **(stage or {})}, **layout)
    os.symlink(world / reward, run.base / "reward")
    write_order(run.order("ppo"), replace(read_order(run.order("ppo")), reward_model="base/reward"))
    return run
