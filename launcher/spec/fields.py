"""What the schema knows about a path of the job file: its block, its field, the keys beside it. Pure, used for messages."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from launcher.spec.base import Block
from launcher.spec.job import JobSpec
from launcher.spec.places import FieldPath

# Words of other programs -> what they are called here.
FOREIGN = {
    "learning_rate": "lr",
    "adam_betas": "betas",
    "adam_epsilon": "eps",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "max_grad_norm": "clip",
    "gradient_clipping": "clip",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
    "logging_steps": "log_every",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep",
    "batch_size": "global",
    "train_batch_size": "global",
    "per_device_train_batch_size": "micro",
    "train_micro_batch_size_per_gpu": "micro",
    "max_length": "max_tokens",
    "max_seq_length": "max_tokens",
    "cutoff_len": "max_tokens",
    "dataset": "source",
    "path": "source",
    "model_name_or_path": "source",
    "lora": "adapter",
    "peft": "adapter",
    "r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "load_in_4bit": "quantize",
    "attn_implementation": "attention",
    "max_position_embeddings": "positions",
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "ffn",
    "vocab_size": "vocab",
    "zero_stage": "zero",
    "gradient_checkpointing": "checkpointing",
    "tensor_parallel": "tensor",
    "tensor_parallel_size": "tensor",
    "tp": "tensor",
    "pipeline_parallel": "pipeline",
    "pipeline_parallel_size": "pipeline",
    "pp": "pipeline",
    "sequence_parallel_size": "sequence",
    "sp": "sequence",
    "zero_hpz_partition_size": "hpz",
    "zero_quantized_weights": "quantized_weights",
    "zero_quantized_gradients": "quantized_gradients",
}


def keys_of(block: type[Block]) -> dict[str, FieldInfo]:
    """The block's fields by the name the user writes."""
    return {info.alias or name: info for name, info in block.model_fields.items()}


def block_at(path: FieldPath, raw: object) -> type[Block] | None:
    """The model of the mapping at `path`; `raw` (the whole file) tells which stage it is. None: no mapping of ours."""
    blocks: list[type[Block]] = [JobSpec]
    annotation: Any = JobSpec
    for step in path:
        annotation = _step(annotation, step, raw)
        raw = _child(raw, step)
        blocks = list(_blocks_in(annotation, raw))
    return blocks[0] if blocks else None


def field_at(path: FieldPath, raw: object) -> FieldInfo | None:
    """The declared field at `path`, None for a list's element or an unknown key."""
    if not path or not isinstance(path[-1], str):
        return None
    block = block_at(path[:-1], raw)
    return keys_of(block).get(path[-1]) if block else None


def homes_of(key: str) -> tuple[str, ...]:
    """Where a key of this name is a field: `stages.STAGE.data.max_tokens`."""
    return tuple(dict.fromkeys(f"{prefix}{key}" for prefix, block in all_blocks() if key in keys_of(block)))


def all_blocks(block: type[Block] = JobSpec, prefix: str = "") -> Iterator[tuple[str, type[Block]]]:
    """Every model of the job file with the path to it, `stages.STAGE.data.`; a model in several places comes several times."""
    yield prefix, block
    for key, info in keys_of(block).items():
        for inner in _blocks_in(info.annotation, None):
            yield from all_blocks(inner, f"{prefix}{key}.STAGE." if key == "stages" else f"{prefix}{key}.")


def _step(annotation: Any, step: str | int, raw: object) -> Any:
    """The annotation one step further in; None where there is nothing declared."""
    if isinstance(step, int):
        return next((get_args(part)[0] for part in _parts(annotation) if get_origin(part) is tuple), None)
    for part in _parts(annotation):
        if get_origin(part) is dict:
            return get_args(part)[1]
    for block in _blocks_in(annotation, raw):
        info = keys_of(block).get(step)
        if info:
            return info.annotation
    return None


def _child(raw: object, step: str | int) -> object:
    if isinstance(raw, dict):
        return raw.get(step)
    return raw[step] if isinstance(raw, list) and isinstance(step, int) and step < len(raw) else None


def _parts(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, Annotated taken off."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation


def _blocks_in(annotation: Any, raw: object) -> Iterator[type[Block]]:
    """The models that a value of this annotation can have: of a stage, the one that its kind names."""
    kind = raw.get("kind") if isinstance(raw, dict) else None
    for part in _parts(annotation):
        if get_origin(part) is tuple and raw is None:
            yield from _blocks_in(get_args(part)[0], None)
        elif isinstance(part, type) and issubclass(part, Block) and (kind is None or _is_kind(part, kind)):
            yield part


def _is_kind(block: type[Block], kind: object) -> bool:
    info = block.model_fields.get("kind")
    return info is None or kind in get_args(info.annotation)
