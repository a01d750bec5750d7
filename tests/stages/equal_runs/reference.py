"""The yardstick: one process, plain PyTorch, whole models, every loss written out here. No DeepSpeed, no loop of ours.

Taken from the launcher: which rows a step sees, the learning rate of a step, and the first values of weights that no folder
has. Eager attention, a mask where there is padding, pairs and packed rows each in a forward pass of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.stages.runs import PAD

NO_LOSS = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What a run told, one value a step, held-out figures, and the weights of the folder that it left."""

    losses: list[float]
    norms: list[float]  # before clipping
    held_out: dict[str, float]
    weights: dict[str, np.ndarray]


def train_plainly(
    model_folder: Path, rows_folder: Path, job_json: Path, out: Path, *, global_seqs: int, optimizer: str
) -> Curves:
    """Runs in a forked rank. `out`: where the trained model's folder is written."""
    import torch
    from datasets import load_from_disk
    from safetensors.numpy import load_file

    from launcher.spec.job import JobSpec
    from launcher.train.rows import row_numbers
    from launcher.train.schedule import learning_rate

    job = JobSpec.model_validate_json(job_json.read_text())
    stage = job.stages[0]
    rows, held_out = (list(load_from_disk(str(rows_folder / split))) for split in ("train", "held_out"))
    held_out = held_out[: stage.eval_rows]
    model = _load(model_folder, job)
    frozen = copy.deepcopy(model).requires_grad_(False) if stage.kind == "dpo" else None
    if job.model.adapter is not None:
        model = _with_adapter(model, job)
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() >= 2], "weight_decay": stage.weight_decay},
        {"params": [weight for weight in trained if weight.dim() < 2], "weight_decay": 0.0},
    ]
    make = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    options = {"betas": stage.betas, "eps": stage.eps} if optimizer == "adamw" else {}
    optim = make([group for group in groups if group["params"]], lr=stage.lr, **options)

    figures = {f"before/{name}": value for name, value in _held_out(model, frozen, held_out, stage).items()}
    losses, norms = [], []
    for step in range(stage.steps):
        numbers = row_numbers(len(rows), seed=job.seed, start=step * global_seqs, stop=(step + 1) * global_seqs)
        loss = _loss(model, frozen, [rows[number] for number in numbers], stage)
        optim.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, stage.clip)))
        for group in optim.param_groups:
            group["lr"] = learning_rate(stage, step, stage.steps)
        optim.step()
        losses.append(float(loss.detach()))
    figures |= {f"after/{name}": value for name, value in _held_out(model, frozen, held_out, stage).items()}
    (model.merge_and_unload() if job.model.adapter is not None else model).save_pretrained(out)
    return Curves(losses=losses, norms=norms, held_out=figures, weights=load_file(out / "model.safetensors"))


def _load(folder: Path, job):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from launcher.train.weights import drawn

    if job.stages[0].kind != "reward":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", num_labels=1
    )
    weight = model.score.weight  # every tiny model has the usual standard deviation
    weight.data = drawn("score.weight", tuple(weight.shape), seed=job.seed, std=0.02)
    return model


def _with_adapter(model, job):
    from peft import LoraConfig, get_peft_model

    from launcher.train.weights import drawn

    lora, reward = job.model.adapter, job.stages[0].kind == "reward"
    model = get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules="all-linear",
            task_type="SEQ_CLS" if reward else "CAUSAL_LM",
            modules_to_save=["score"] if reward else None,
        ),
    )
    for name, weight in model.named_parameters():
        if ".lora_A." in name:  # B starts at zero
            weight.data = drawn(name.removeprefix("base_model.model."), tuple(weight.shape), seed=job.seed, std=0.0)
    return model


def _loss(model, frozen, rows: Sequence[dict], stage):
    import torch
    from torch.nn.functional import logsigmoid

    if stage.kind in ("pretrain", "sft"):
        nats, tokens = _nats(model, _single(rows))
        return nats / tokens
    if stage.kind == "reward":
        scores = [(_score(model, row["chosen_ids"]), _score(model, row["rejected_ids"])) for row in rows]
        return torch.stack([-logsigmoid(good - bad) + stage.center * (good + bad) ** 2 for good, bad in scores]).mean()
    return torch.stack([-logsigmoid(margin) for margin in _margins(model, frozen, rows, stage)]).mean()


def _single(rows: Sequence[dict]) -> list[dict]:
    """Packs taken apart into their rows."""
    single = []
    for row in rows:
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            single.append({name: row[name][start : start + length] for name in ("input_ids", "labels")})
            start += length
    return single


def _nats(model, rows: Sequence[dict]):
    """Sum of nats over all target tokens, and their number. Padded on the right, with a mask."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [PAD] * (longest - len(row["input_ids"])) for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([list(row["labels"]) + [NO_LOSS] * (longest - len(row["labels"])) for row in rows])
    log_probs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    targets, counted = labels[:, 1:], labels[:, 1:] != NO_LOSS
    told = log_probs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -told[counted].sum(), int(counted.sum())


def _score(model, ids: list[int]):
    import torch

    return model(input_ids=torch.tensor([ids])).logits[0, 0]


def _margins(model, frozen, rows: Sequence[dict], stage) -> list:
    def moved(prompt: list[int], answer: list[int]):
        row = [{"input_ids": prompt + answer, "labels": [NO_LOSS] * len(prompt) + answer}]
        return _nats(frozen, row)[0] - _nats(model, row)[0]

    return [
        stage.beta * (moved(row["prompt_ids"], row["chosen_ids"]) - moved(row["prompt_ids"], row["rejected_ids"]))
        for row in rows
    ]


def _held_out(model, frozen, rows: Sequence[dict], stage) -> dict[str, float]:
    import torch
    from torch.nn.functional import logsigmoid

    with torch.no_grad():
        if stage.kind in ("pretrain", "sft"):
            nats, tokens = _nats(model, _single(rows))
            return {"loss": float(nats / tokens)}
        if stage.kind == "reward":
            margins = [_score(model, row["chosen_ids"]) - _score(model, row["rejected_ids"]) for row in rows]
            return {"margin": float(torch.stack(margins).mean())}
        margins = torch.stack(_margins(model, frozen, rows, stage))
        return {"margin": float(margins.mean()), "loss": float(-logsigmoid(margins).mean())}
