"""config.json -> blueprint: all that a plan has to know of a model whose family none of its tables has. DO, without a weight.

transformers builds the model on fake tensors, which have sizes and a device but no memory: with two and with three layers,
whose difference is one block, and once with all layers, to see that every block is that one. Anything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from launcher.errors import LauncherError, Problem
from launcher.train.base import POSITION_FIELDS
from launcher.train.blueprint_block import NoSuchBlock, Trace, trace_block
from launcher.train.blueprint_kept import kept_by_block

FORMAT = 1  # raised when the same config would be told differently
KINDS = {"full_attention", "sliding_attention"}  # of layers, whose blocks have the same weights
# What a library raises over a config that it was not made for. Errors of fake tensors are RuntimeErrors.
FOREIGN = (ArithmeticError, AttributeError, ImportError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)

Sizes = dict[str, tuple[int, ...]]  # of tensors, in the model's order


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """A model's tensors by where they stand."""

    prefix: str  # of the blocks' names
    before: Sizes
    block: Sizes  # under their names inside it
    behind: Sizes


def make_blueprint(fields: Mapping[str, Any], *, file: str) -> dict[str, object]:
    """What blueprint.json holds. LauncherError E212 with the reason where it cannot be planned, E213 for a broken field."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _blueprint(fields)
    except NoSuchBlock as error:
        raise LauncherError(_problem(file, fields, str(error))) from None
    except StrictDataclassError as error:
        what, hint = str(error.__cause__ or error).partition("\n")[0], "use the config.json that belongs to the weights"
        raise LauncherError(Problem(code="E213", where=file, what=what, hint=hint)) from None
    except FOREIGN as error:
        first = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise LauncherError(
            _problem(file, fields, f"transformers {transformers.__version__} cannot build it ({first})")
        ) from error


def _blueprint(fields: Mapping[str, Any]) -> dict[str, object]:
    config = _config_of(fields)
    refuse_others(config)
    two, three, whole = (_sizes(built(fields, layers)) for layers in (2, 3, None))
    places = _places(two, three)
    _refuse_other_blocks(whole, places, layers=config.num_hidden_layers)
    model = built(fields, 3)
    trace = trace_block(model, f"{places.prefix}.2")
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(weight): name for name, weight in model.named_parameters()}
    tied, own = head.weight is embedding.weight, [weight for weight in (head.weight, head.bias) if weight is not None]
    if tuple(embedding.weight.shape) != (head.weight.shape[0], trace.hidden):
        raise NoSuchBlock(f"its embedding is {tuple(embedding.weight.shape)}, its blocks are {trace.hidden} wide")
    of_head = [names[id(weight)] for weight in own if not (tied and weight is head.weight)]
    if set(of_head) - set(places.behind):
        raise NoSuchBlock("its head does not stand behind its blocks")
    _refuse_unseen(places, trace, embedding=names[id(embedding.weight)], head=of_head)
    others = [size[0] for name, size in places.before.items() if len(size) == 2 and name != names[id(embedding.weight)]]
    return {
        "schema": FORMAT,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "family": config.model_type,
        "parameters": sum(torch.Size(size).numel() for size in whole.values()),
        "shape": {
            "vocab": head.weight.shape[0],
            "hidden": trace.hidden,
            "layers": config.num_hidden_layers,
            "heads": trace.heads,
            "kv_heads": trace.kv_heads,
            "head_dim": trace.head_dim,
            "ffn": trace.ffn,
            "positions": _positions(config),
            "tied": tied,
            "attention_bias": trace.attention_bias,
            "out_bias": trace.out_bias,
            "mlp_bias": trace.mlp_bias,
            "norms_per_block": trace.norms,
            "query_key_norm": trace.query_key_norm,
            "window": _window(config),
        },
        "gated": trace.gated,
        "layer_norm": trace.layer_norm,
        "learned_positions": sum(others),
        "embedding": names[id(embedding.weight)],
        "head": of_head,
        "before": _listed(places.before),
        "block": _listed(places.block),
        "behind": _listed(places.behind),
        "linears": [linear.as_dict() for linear in trace.linears],
        "kept": kept_by_block(lambda dtype, kernel: built(fields, 3, dtype=dtype, kernel=kernel), places.prefix),
        "untrained": _untrained(model),
        "scores": _scores(fields),
    }


def _config_of(fields: Mapping[str, Any], layers: int | None = None) -> PretrainedConfig:
    """The config with another number of layers; lists with one entry a layer are cut to it."""
    family = fields.get("model_type")
    if family not in CONFIG_MAPPING_NAMES:
        if fields.get("auto_map"):
            raise NoSuchBlock("it needs code of its own (auto_map), which is never run here")
        near = get_close_matches(family, CONFIG_MAPPING_NAMES, n=1) if isinstance(family, str) else []
        meant = f"; did you mean {near[0]}?" if near else ""
        raise NoSuchBlock(f"transformers {transformers.__version__} has no such family{meant}")
    own = {name: value for name, value in fields.items() if name not in ("model_type", "dtype", "torch_dtype", "auto_map")}
    config = AutoConfig.for_model(family, **own)
    if layers is None:
        return config
    all_layers = config.num_hidden_layers
    cut = {
        name: value[:layers]
        for name, value in own.items()
        if isinstance(value, list) and len(value) == all_layers and not name.endswith("token_id")
    }
    count = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return AutoConfig.for_model(family, **{**own, **cut, count: layers})


def built(
    fields: Mapping[str, Any], layers: int | None, *, dtype: torch.dtype = torch.float32, kernel: str = "sdpa"
) -> PreTrainedModel:
    """The causal language model, ready to be trained; call under a FakeTensorMode."""
    config = _config_of(fields, layers)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kernel).train()


def refuse_others(config: PretrainedConfig) -> None:
    """NoSuchBlock for what the config alone shows to be no decoder of attention blocks."""
    kinds = set(getattr(config, "layer_types", None) or ()) - KINDS
    if config.is_encoder_decoder:
        raise NoSuchBlock("it has an encoder beside its decoder")
    if config.get_text_config() is not config:
        raise NoSuchBlock("it is made of several models, for pictures or sound beside text")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise NoSuchBlock("it is no causal language model")
    if kinds:
        raise NoSuchBlock(
            f"it has layers of other kinds than attention over the row or a window of it ({', '.join(sorted(kinds))})"
        )
    if not AutoModelForCausalLM._model_mapping[type(config)]._supports_sdpa:
        raise NoSuchBlock("transformers has no sdpa attention for it")


def _sizes(model: nn.Module) -> Sizes:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _places(two: Sizes, three: Sizes) -> Places:
    """What a third layer adds is the block; it must be what the first two are."""
    added = [name for name in three if name not in two]
    prefix, mark, _ = added[0].partition(".2.") if added else ("", "", "")
    if not mark or any(not name.startswith(f"{prefix}.2.") for name in added):
        raise NoSuchBlock("a third layer does not add a block of its own")
    block = {name.removeprefix(f"{prefix}.2."): three[name] for name in added}
    stacks = [name for name, size in block.items() if len(size) > 2]
    if stacks:
        raise NoSuchBlock(f"its blocks have experts or convolutions ({stacks[0]})")
    order = list(two)
    of_blocks = [place for place, name in enumerate(order) if name.startswith((f"{prefix}.0.", f"{prefix}.1."))]
    before, behind = order[: min(of_blocks, default=0)], order[max(of_blocks, default=-1) + 1 :]
    places = Places(
        prefix=prefix, before={name: two[name] for name in before}, block=block, behind={name: two[name] for name in behind}
    )
    _refuse_other_blocks(two, places, layers=2)
    return places


def _refuse_other_blocks(sizes: Sizes, places: Places, *, layers: int) -> None:
    """NoSuchBlock unless the model is `layers` times the block, in order, between the same ends."""
    blocks = {f"{places.prefix}.{layer}.{name}": size for layer in range(layers) for name, size in places.block.items()}
    if list(sizes.items()) == list({**places.before, **blocks, **places.behind}.items()):
        return
    other = next(
        name for name in (*sizes, *blocks) if sizes.get(name) != {**places.before, **blocks, **places.behind}.get(name)
    )
    raise NoSuchBlock(f"its blocks differ: {other} is not in all of them, or of another size")


def _refuse_unseen(places: Places, trace: Trace, *, embedding: str, head: list[str]) -> None:
    """Every matrix must be known for what it is: a linear layer that each token passes once, an embedding or the head."""
    seen = {f"{linear.path}.weight" for linear in trace.linears}
    strange = [name for name, size in places.block.items() if len(size) > 1 and name not in seen]
    strange += [name for name, size in places.behind.items() if len(size) > 1 and name not in head]
    strange += [
        name for name, size in places.before.items() if len(size) > 1 and name != embedding and size[1:] != (trace.hidden,)
    ]
    if strange:
        raise NoSuchBlock(f"{strange[0]} is no linear layer that every token passes once")


def _positions(config: PretrainedConfig) -> int:
    found = [value for name in POSITION_FIELDS if isinstance(value := getattr(config, name, None), int)]
    if not found:
        raise NoSuchBlock(f"its config says nowhere how long a row may be ({', '.join(POSITION_FIELDS)})")
    return found[0]


def _window(config: PretrainedConfig) -> int | None:
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    return window if kinds is None or "sliding_attention" in kinds else None


def _untrained(model: PreTrainedModel) -> str | None:
    """Why the ranks would train something else; None: they would not.

    They apply the head to what the base model gives (train/scoring.py): nothing may happen between the two, or behind it.
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    body: list[torch.Tensor] = []
    other = model.base_model.register_forward_hook(lambda _, inputs, output: body.append(output.last_hidden_state))
    logits = model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False).logits
    hook.remove()
    other.remove()
    given, made = seen[0]
    if not body or given.untyped_storage()._cdata != body[0].untyped_storage()._cdata or given.shape != body[0].shape:
        return "its head does not read what its base model gives"
    if made is not logits:
        return "its logits are changed behind the head"
    if not model.supports_gradient_checkpointing:
        return "its blocks cannot be recomputed"
    return None


def _scores(fields: Mapping[str, Any]) -> bool:
    """Whether there is a classifier of the family with the head `score`, which reward models and critics are."""
    config = _config_of(fields, 2)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        return False
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    drawn = hasattr(config, "initializer_range") or hasattr(config, "init_std")
    head = getattr(model, "score", None)
    return drawn and isinstance(head, nn.Linear) and head.bias is None and head.in_features == config.hidden_size


def _listed(sizes: Sizes) -> list[dict[str, object]]:
    return [{"name": name, "size": list(size)} for name, size in sizes.items()]


def _problem(file: str, fields: Mapping[str, Any], why: str) -> Problem:
    hint = "use a decoder of alike attention blocks that the installed transformers has, without experts"
    return Problem(
        code="E212", where=file, what=f"model_type: {fields.get('model_type')!r} cannot be planned: {why}", hint=hint
    )
