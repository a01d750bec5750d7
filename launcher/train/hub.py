"""Names of models and tokenizers -> folders on this machine. A hub id is fetched once, here: no rank needs the network."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from launcher.errors import LauncherError, Problem
from launcher.spec.model import ModelSpec

# Pickles can run code, and remote code is not trusted; `tokenizer*` alone would fetch tokenizer_x.py.
NEVER_FETCHED = ["*.py", "*.bin", "*.pt", "*.pth"]
TOKENIZER_FILES = [
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "*.model",
]
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", *TOKENIZER_FILES]


def is_local(name: str) -> bool:
    """Loading a job file makes local paths absolute."""
    return Path(name).is_absolute() or Path(name).exists()


def model_folder(source: str, revision: str | None) -> Path:
    return Path(source) if is_local(source) else _fetch(source, revision, MODEL_FILES, where="model.source")


def tokenizer_folder(model: ModelSpec) -> Path:
    """Of model.tokenizer where it is named, else the model's own."""
    if isinstance(model.tokenizer, str):
        named = model.tokenizer
        return Path(named) if is_local(named) else _fetch(named, None, TOKENIZER_FILES, where="model.tokenizer")
    if model.source is None:
        what = "a new model has no tokenizer of its own"
        raise LauncherError(
            Problem(code="E540", where="model.tokenizer", what=what, hint="model.tokenizer: {train: {vocab: 2048}}")
        )
    return model_folder(model.source, model.revision)


def _fetch(name: str, revision: str | None, patterns: list[str], *, where: str) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=NEVER_FETCHED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "check the id, the network and the access rights (HF_TOKEN), or name a local folder"
        raise LauncherError(Problem(code="E547", where=where, what=f"{name} cannot be fetched: {reason}", hint=hint)) from error
