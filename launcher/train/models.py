"""Model folder + stage order → a model in the right dtype with the right head, and the tokenizer that belongs to it.

Call after meet() and after the ZeRO-3 config is registered (zero3_config, kept alive): from_pretrained
then builds the model partitioned. Every dtype is explicit: without one, the checkpoint's own would be taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations import deepspeed as hf_deepspeed

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.model import ModelSpec
from launcher.train.adapters import forbid_repacking, quantization_config, refuse_unquantized
from launcher.train.weights import LM_HEADS, refuse_misfits

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def zero3_config(ds_config: dict[str, object], order: StageOrder) -> HfDeepSpeedConfig | None:
    """Registers the ZeRO-3 config for models built after it. The registry holds a weak reference: keep the value alive.

    For ppo and 4-bit bases; the others are built by parts (train/building.py).
    """
    return HfDeepSpeedConfig(ds_config) if order.zero == 3 else None


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Models built and called inside are whole on this rank although a ZeRO-3 config is registered. Not collective."""
    kept = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = kept


def load_tokenizer(run: RunDir, order: StageOrder) -> PreTrainedTokenizerBase:
    """The stage's tokenizer. Its pad token must not be its end token: a scored answer would lose its end as padding."""
    tokenizer = AutoTokenizer.from_pretrained(run.path / order.tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise LauncherError(
            Problem(
                code="E556",
                where=f"{order.tokenizer}",
                what=f"pad token {tokenizer.pad_token!r} must be a token of its own, the end token is {tokenizer.eos_token!r}",
                hint="let prepare make the tokenizer folder again; it gives a model without a pad token one",
            )
        )
    return tokenizer


def load_causal(
    folder: Path, order: StageOrder, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, *, quantize: bool = False
) -> PreTrainedModel:
    """The language model in `folder`. Every weight must be there and none left over."""
    return _load(AutoModelForCausalLM, folder, order, spec, tokenizer, head=(), quantize=quantize)


def load_reward(
    folder: Path, order: StageOrder, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, *, quantize: bool = False
) -> PreTrainedModel:
    """One score per sequence, at its last token. The head `score` is new on a language model, kept on a reward model."""
    head = () if is_reward_folder(folder) else ("score.weight",)
    return _load(AutoModelForSequenceClassification, folder, order, spec, tokenizer, head=head, quantize=quantize, num_labels=1)


def is_reward_folder(folder: Path) -> bool:
    """True for a model with a score head, as its config names it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def dtype_of(order: StageOrder) -> torch.dtype:
    """bf16 and fp16 models live in 16 bit; DeepSpeed's bf16 or fp16 section keeps fp32 master weights beside them."""
    return DTYPES[order.precision]


def _load(kind, folder, order, spec, tokenizer, *, head, quantize=False, **kwargs) -> PreTrainedModel:
    if spec.attention is not None:
        kwargs["attn_implementation"] = spec.attention
    if quantize:
        kwargs["quantization_config"] = quantization_config(dtype_of(order))
    model, info = kind.from_pretrained(folder, dtype=dtype_of(order), output_loading_info=True, **kwargs)
    if quantize:
        refuse_unquantized(model, str(folder))
        forbid_repacking(model)
    _check_keys(info, head, folder)
    know_tokenizer(model, tokenizer, folder)
    model.config.use_cache = False  # while training; hand_on writes it as true
    return model


def know_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Tell the model its padding. E556 where the tokenizer has more entries than the model's embedding."""
    _check_vocabulary(model, tokenizer, folder)
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:  # scoring models have none
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _check_keys(info: dict, head: tuple[str, ...], folder: Path) -> None:
    refuse_misfits(
        folder,
        {
            "missing": sorted(set(info["missing_keys"]) - set(head)),
            "left over": sorted(key for key in info["unexpected_keys"] if not key.startswith(LM_HEADS)),
            "of another shape": sorted(str(key) for key in info.get("mismatched_keys") or ()),
            "errors": list(info.get("error_msgs") or ()),
        },
    )


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise LauncherError(
            Problem(
                code="E556",
                where=str(folder),
                what=f"the tokenizer has {len(tokenizer)} entries, the model's embedding only {rows} rows",
                hint="use the model's own tokenizer",
            )
        )
