"""The model that the first stage starts from -> base/model: drawn, linked or fetched once, before any rank starts.

A model drawn under ZeRO-3 gets other weights from the same seed than one drawn under ZeRO 0-2, so a new model is drawn here,
in one process and float32, and every rank loads it. Only safetensors are accepted: the older pickles can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import read_json
from launcher.spec.model import NewModel
from launcher.spec.new_model import new_model_config
from launcher.train.cache import cached

WHERE = "model.source"
FORMAT = 1
POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length")
DROPOUT_FIELDS = ("attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """What the data must fit into. `embedding_rows` is None for a model that is drawn to fit its tokenizer."""

    positions: int | None
    embedding_rows: int | None
    end_ids: frozenset[int]  # stop tokens that the model itself names
    notes: tuple[str, ...] = ()


def new_model_facts(new: NewModel) -> BaseFacts:
    return BaseFacts(positions=new.positions, embedding_rows=None, end_ids=frozenset())


def draw_model(new: NewModel, tokenizer: PreTrainedTokenizerBase, *, vocab: int, seed: int, folder: Path) -> bool:
    """Make sure that `folder` holds the new model with `vocab` embedding rows; True where it was there already."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = new_model_config(new, vocab) | ids
    text = json.dumps([FORMAT, seed, torch.__version__, config], sort_keys=True)
    return cached(folder, hashlib.sha256(text.encode()).hexdigest(), lambda empty: _draw(config, seed, empty))


def _draw(config: dict[str, object], seed: int, folder: Path) -> dict[str, object]:
    torch.manual_seed(seed)
    fields = {key: value for key, value in config.items() if key != "dtype"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.float32)
    model.save_pretrained(folder)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "seed": seed}


def source_facts(folder: Path) -> BaseFacts:
    """What config.json and the weights say. LauncherError with everything that makes the folder unusable."""
    problems = [] if folder.is_dir() else [_problem(f"{folder} is not a folder", "name a Hugging Face folder or hub id")]
    config: dict[str, object] = {}
    if not problems:
        try:
            config = read_json(folder / "config.json")
        except FileNotFoundError:
            problems.append(
                _problem(f"{folder} has no config.json", "name the folder that holds config.json and *.safetensors")
            )
        except (OSError, ValueError) as error:
            problems.append(_problem(f"{folder / 'config.json'} cannot be read: {error}", "restore the file from its source"))
        problems += _weight_problems(folder)
    if problems:
        raise LauncherError(problems)
    dropout = {name: config[name] for name in DROPOUT_FIELDS if config.get(name)}
    notes = (f"the model's config has dropout: {dropout}",) if dropout else ()
    return BaseFacts(
        positions=next((value for name in POSITION_FIELDS if isinstance(value := config.get(name), int)), None),
        embedding_rows=value if isinstance(value := config.get("vocab_size"), int) else None,
        end_ids=frozenset(_end_ids(folder, config)),
        notes=notes,
    )


def link_model(source: Path, folder: Path) -> None:
    """base/model becomes a link to the source: nothing is copied, and every rank reads the same files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(source.resolve(), target_is_directory=True)
    if folder.is_dir() and not folder.is_symlink():  # drawn by an earlier attempt of another job file
        raise LauncherError(_problem(f"{folder} holds another model", "start a new run instead of resuming this one"))
    temporary.replace(folder)


def _weight_problems(folder: Path) -> list[Problem]:
    """Every shard must be there and as long as its own header says: a copy that was cut off is found before the ranks start."""
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(dict(read_json(index)["weight_map"]).values())) if index.exists() else []  # type: ignore[call-overload]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [_problem(f"{index} cannot be read: {error}", "restore the file from its source")]
    shards = [folder / str(name) for name in names] or sorted(folder.glob("*.safetensors"))
    if shards:
        return [problem for shard in shards if (problem := _shard_problem(shard))]
    pickles = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickles:
        what = f"{folder} has its weights as a pickle ({pickles[0]}), which can run code when it is loaded"
        return [_problem(what, "convert it: load it where you trust it, then save_pretrained, which writes safetensors")]
    return [_problem(f"{folder} has no weights (*.safetensors)", "name the folder that holds config.json and *.safetensors")]


def _shard_problem(shard: Path) -> Problem | None:
    try:
        with shard.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            size = shard.stat().st_size
            header = json.loads(file.read(header_bytes)) if header_bytes < size else None
        ends = [entry["data_offsets"][1] for name, entry in (header or {}).items() if name != "__metadata__"]
        whole = header is not None and size == 8 + header_bytes + max(ends, default=0)
    except FileNotFoundError:
        return _problem(f"{shard} is missing", "download the model again")
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        whole = False
    return None if whole else _problem(f"{shard} is damaged or cut off", "download the model again")


def _end_ids(folder: Path, config: dict[str, object]) -> set[int]:
    try:
        generation = read_json(folder / "generation_config.json")
    except (OSError, ValueError):
        generation = {}
    named = [config.get("eos_token_id"), generation.get("eos_token_id")]
    flat = [item for value in named for item in (value if isinstance(value, list) else [value])]
    return {item for item in flat if isinstance(item, int)}


def _problem(what: str, hint: str) -> Problem:
    return Problem(code="E546", where=WHERE, what=what, hint=hint)
