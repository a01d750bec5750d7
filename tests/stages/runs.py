"""The smallest run folder that a stage trains in: one factory, every test changes only the field it is about.

    world = make_world(folder)                                  # tokenizer, model (6 k parameters) and tokenised rows, once
    run = make_run(world, kind="sft", ranks=2, zero=2, micro=4, accum=1)
    ends = run_verb("train", run.path, "sft", world=2)

Rows are already tokenised, as prepare leaves them; ids are drawn so that a tiny model learns them in a few steps.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

from launcher.dsconfig.render import ds_config
from launcher.plan.plan import Memory, StagePlan
from launcher.rundir.folder import RunDir, write_json
from launcher.rundir.order import write_order
from launcher.spec.job import JobSpec
from tests.orders import make_order
from tests.stages.harness import run_ranks

VOCAB, PAD, END, FIRST = 64, 0, 1, 4
HIDDEN = 32
_ids = itertools.count()


def make_world(folder: Path) -> Path:
    """Tokenizer, model and rows under `folder`, made by one forked rank: the parent stays clean."""
    run_ranks(_write_world, folder, world=1)
    return folder


def _write_world(folder: Path) -> None:
    _write_tokenizer(folder / "tokenizer")
    write_model(folder / "model")
    for kind, rows in (("pretrain", blocks), ("sft", answers), ("reward", pairs), ("dpo", preferences)):
        for split, count, seed in (("train", 96, 1), ("held_out", 24, 2)):
            save_rows(folder / kind / split, rows(count, seed))
    packed = pack(answers(192, 1), 32)
    save_rows(folder / "sft_packed" / "train", packed)
    save_rows(folder / "sft_packed" / "held_out", pack(answers(24, 2), 32))


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<user>", "<assistant>"] + [f"w{i}" for i in range(VOCAB - 4)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)


def write_model(folder: Path, *, tied: bool = True, ffn: int = 64, **changes: object) -> None:
    """A Llama of two layers, drawn outside any ZeRO context and saved in fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": ffn,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)


def save_rows(folder: Path, columns: dict[str, list]) -> None:
    from datasets import Dataset

    Dataset.from_dict(columns).save_to_disk(folder)


def _count_up(start: int, length: int, step: int) -> list[int]:
    return [FIRST + (start + step * i) % (VOCAB - FIRST) for i in range(length)]


def blocks(count: int, seed: int) -> dict[str, list]:
    """Pretraining blocks of 16 tokens that count up."""
    ids = [_count_up(7 * seed + 3 * row, 16, 1 + row % 2) for row in range(count)]
    return {"input_ids": ids, "labels": ids}


def answers(count: int, seed: int) -> dict[str, list]:
    """A question of 3-6 tokens without loss, an answer of 3-9 tokens that counts on, the end token."""
    rows: dict[str, list] = {"input_ids": [], "labels": []}
    for row in range(count):
        question = _count_up(5 * seed + row, 3 + row % 4, 1)
        answer = [*_count_up(question[-1] - FIRST + 1, 3 + (row * 5 + seed) % 7, 1), END]
        rows["input_ids"].append(question + answer)
        rows["labels"].append([-100] * len(question) + answer)
    return rows


def pairs(count: int, seed: int) -> dict[str, list]:
    """Chosen counts up, rejected counts down."""
    prompts = [_count_up(5 * seed + row, 2 + row % 3, 1) for row in range(count)]
    good = [_count_up(p[-1] - FIRST + 1, 3 + row % 5, 1) for row, p in enumerate(prompts)]
    bad = [_count_up(p[-1] - FIRST - 1, 3 + (row + 2) % 5, -1) for row, p in enumerate(prompts)]
    return {
        "chosen_ids": [[*p, *g, END] for p, g in zip(prompts, good, strict=True)],
        "rejected_ids": [[*p, *b, END] for p, b in zip(prompts, bad, strict=True)],
        "group": ["down" if row % 2 else "" for row in range(count)],
    }


def preferences(count: int, seed: int) -> dict[str, list]:
    rows = pairs(count, seed)
    cut = [2 + row % 3 for row in range(count)]
    return {
        "prompt_ids": [ids[:n] for ids, n in zip(rows["chosen_ids"], cut, strict=True)],
        "chosen_ids": [ids[n:] for ids, n in zip(rows["chosen_ids"], cut, strict=True)],
        "rejected_ids": [ids[n:] for ids, n in zip(rows["rejected_ids"], cut, strict=True)],
        "group": rows["group"],
    }


def pack(rows: dict[str, list], length: int) -> dict[str, list]:
    """Whole rows behind each other up to `length` tokens, in order, with their lengths."""
    packs: dict[str, list] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        if not packs["input_ids"] or len(packs["input_ids"][-1]) + len(ids) > length:
            for column in packs.values():
                column.append([])
        packs["input_ids"][-1] += ids
        packs["labels"][-1] += labels
        packs["seq_lengths"][-1].append(len(ids))
    return packs


def make_run(
    world: Path,
    *,
    kind: str,
    ranks: int = 1,
    tp: int = 1,
    pp: int = 1,
    sp: int = 1,
    balance: str = "parameters",
    zero: int = 0,
    micro: int = 8,
    accum: int = 1,
    precision: str = "fp32",
    checkpointing: str = "none",
    checkpoint_every: int = 0,
    offload: tuple[str, str] = ("none", "none"),
    data: str | None = None,
    start: Path | None = None,
    stage: dict | None = None,
    model: dict | None = None,
    job: dict | None = None,
) -> RunDir:
    """A run folder with one stage, ready to train. `start`: another model folder than the world's."""
    run = RunDir(world / "runs" / "tiny" / f"{next(_ids):03d}-{os.getpid()}")
    spec = {
        "spec_version": 1,
        "name": "tiny",
        "seed": 3,
        "model": {"source": "somewhere/base", **(model or {})},
        "tensorboard": False,
        "stages": [{"kind": kind, "data": {"source": "rows.jsonl"}, "steps": 4, "lr": 2e-3, "log_every": 1, **(stage or {})}],
        **(job or {}),
    }
    run.path.mkdir(parents=True)
    run.job_json.write_text(json.dumps(spec))
    checked = JobSpec.model_validate_json(run.job_json.read_text())
    run.base.mkdir()
    (run.base / "tokenizer").symlink_to(world / "tokenizer")
    (run.base / "model").symlink_to(start or world / "model")
    folder = os.path.relpath(world / (data or kind), run.path)
    prepared = {"schema": 1, "train": f"{folder}/train", "held_out": f"{folder}/held_out", "fingerprint": "f" * 64}
    prepared["rows"] = {"train": 1, "held_out": 1}  # at least
    write_json(run.stage(kind).prepared, prepared)
    degrees = {"dp": ranks // (tp * pp * sp), "tp": tp, "pp": pp, "sp": sp}
    plan = _stage_plan(kind, ranks, degrees, zero=zero, micro=micro, accum=accum, precision=precision, offload=offload)
    write_json(run.ds_config(kind), ds_config(checked, plan))
    order = make_order(
        stage=kind,
        kind=kind,
        world=ranks,
        **degrees,
        balance=balance,
        precision=precision,
        checkpointing=checkpointing,
        zero=zero,
        micro_batch=micro,
        grad_accum=accum,
        checkpoint_every=checkpoint_every,
        model_kind="reward" if kind == "reward" else "causal",
    )
    write_order(run.order(kind), order)
    return run


def _stage_plan(
    kind: str,
    ranks: int,
    degrees: dict[str, int],
    *,
    zero: int,
    micro: int,
    accum: int,
    precision: str,
    offload: tuple[str, str],
) -> StagePlan:
    numbers = {"name": kind, "kind": kind, "world": ranks, **degrees, "zero": zero}
    memory = Memory(peak_bytes=0, limit_bytes=0, p_fit=None, parts={}, host_peak_bytes=None, disk_bytes=None)
    return StagePlan(
        **numbers,
        offload_optimizer=offload[0],
        offload_parameters=offload[1],
        precision=precision,
        checkpointing="none",
        micro_batch=micro,
        grad_accum=accum,
        global_batch=micro * accum * degrees["dp"],
        max_tokens=32,
        checkpoint_every=0,
        hidden=HIDDEN,
        largest_shard=2**20,
        num_params=20_000,
        num_trainable=20_000,
        memory=memory,
    )
