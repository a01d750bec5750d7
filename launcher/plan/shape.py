"""config.json -> ModelShape: the widths and counts of a model that decide its parameters and its memory.

DERIVE. Reads a parsed config, opens no file. The families are in families/; what others need of them has its door here. A
family that is in none of them has its shape from a blueprint, which the node side makes of its config.json.
"""

from __future__ import annotations

from launcher.errors import LauncherError
from launcher.plan.families.blueprint import Told, blueprint_from
from launcher.plan.families.dense import DENSE
from launcher.plan.families.experts import EXPERTS
from launcher.plan.families.linear import Linear
from launcher.plan.families.linears import block_linears
from launcher.plan.families.model_shape import FAMILIES, PLANNED_FAMILIES, PLANNED_ONLY, ModelShape, nearest_trained
from launcher.plan.families.reader import Config, Reader
from launcher.spec.model import NewModel
from launcher.spec.new_model import new_model_config

__all__ = [
    "FAMILIES",
    "PLANNED_FAMILIES",
    "PLANNED_ONLY",
    "Config",
    "Linear",
    "ModelShape",
    "block_linears",
    "is_known",
    "nearest_trained",
    "refuse_quantized",
    "shape_from_blueprint",
    "shape_from_config",
    "shape_of_new",
]

_READERS = {**DENSE, **EXPERTS}


def shape_from_config(config: Config, *, file: str) -> ModelShape:
    """The shape that `config` describes; LauncherError with every field that is missing or broken, named with `file`."""
    reader = Reader(config, file)
    family = reader.family()
    if family is None:
        raise LauncherError(reader.problems)
    shape = _READERS[family](reader, family)
    reader.refuse_quantized()
    if shape.hidden and shape.heads and shape.hidden % shape.heads and config.get("head_dim") is None and family != "gemma":
        reader.fail("hidden_size", f"{shape.hidden} is not a multiple of the {shape.heads} attention heads")
    if shape.kv_heads and shape.heads % shape.kv_heads:
        field = "num_kv_heads" if family == "falcon" else "num_key_value_heads"
        reader.fail(field, f"{shape.kv_heads} does not divide the {shape.heads} attention heads")
    if reader.problems:
        raise LauncherError(reader.problems)
    return shape


def is_known(config: Config) -> bool:
    """Whether the tables have the family, or the config names none: then `shape_from_config` says so."""
    return config.get("model_type") is None or config["model_type"] in PLANNED_FAMILIES


def refuse_quantized(config: Config, *, file: str) -> None:
    """LauncherError E213 for weights that are quantized already."""
    reader = Reader(config, file)
    reader.refuse_quantized()
    if reader.problems:
        raise LauncherError(reader.problems)


def shape_from_blueprint(told: Told) -> ModelShape:
    """The shape of a family that no table has. ValueError for what is not as train/blueprint.py writes it."""
    blueprint, fields = blueprint_from(told), told["shape"]
    if not isinstance(fields, dict):
        raise ValueError("shape is no object")
    try:
        return ModelShape(family=str(told["family"]), **fields, blueprint=blueprint)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def shape_of_new(new: NewModel, vocab: int) -> ModelShape:
    """The shape of a model that is drawn with `vocab` embeddings."""
    return shape_from_config(new_model_config(new, vocab), file="model.new")
