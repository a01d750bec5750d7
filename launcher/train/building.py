"""(model folder, order, mesh) → this rank's part of the model, ready for deepspeed.initialize. DO.

The whole model exists on the meta device only, as shapes. Each module of this rank is then filled from safetensors, cut to its
tensor rank and, under ZeRO-3, partitioned, before the next one is read: a rank never holds more than its part and one module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import deepspeed
import torch
from accelerate import init_empty_weights
from peft import PeftModel, get_peft_model
from torch import nn
from torch.autograd.graph import save_on_cpu
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from launcher.rundir.order import StageOrder
from launcher.spec.model import Lora, ModelSpec
from launcher.train.adapters import lora_config
from launcher.train.allocation import no_holes
from launcher.train.families import initial_std
from launcher.train.mesh import Mesh
from launcher.train.models import dtype_of, is_reward_folder
from launcher.train.pieces import Piece
from launcher.train.sharding import Sharder, make_sharder, shard_layers
from launcher.train.weights import Weights, drawn

SCORE = "score.weight"
# Where peft moves a weight that it wraps; the folder knows it under its own name.
PEFT_PREFIX = "base_model.model."
WRAPPERS = (".base_layer", ".original_module", ".modules_to_save.default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """The whole model as shapes on the meta device, and what it takes to fill a part of it."""

    model: PreTrainedModel
    names: dict[nn.Module, str]  # of every module, as long as nothing is taken out
    tied: bool  # the head is the embedding, used once more
    peft: PeftModel | None  # around `model`, where an adapter is trained
    folder: Path
    mesh: Mesh
    sharder: Sharder | None  # None: tp 1
    partition: deepspeed.zero.Init | None  # None: below ZeRO-3
    dtype: torch.dtype
    seed: int
    num_parameters: int  # of the whole model without an adapter, each once

    @property
    def outer(self) -> nn.Module:
        return self.peft or self.model

    @property
    def base(self) -> nn.Module:
        return base_of(self.model)

    @property
    def head(self) -> nn.Module:
        return head_of(self.model)


def keep_only_block_inputs(model: PreTrainedModel, order: StageOrder) -> None:
    """Activation checkpointing of each block, where the plan asks for it. Not reentrant: that loses gradients under LoRA."""
    if order.checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})


def where_saved(order: StageOrder) -> Callable[[], AbstractContextManager]:
    """A context for the forward pass of the blocks: what it saves stays on the device, or goes to the host and comes back."""
    if order.checkpointing == "offload":
        return partial(save_on_cpu, pin_memory=order.device == "cuda")
    return nullcontext


def base_of(model: PreTrainedModel) -> nn.Module:
    """The decoder without its head."""
    return getattr(model, model.base_model_prefix)


def head_of(model: PreTrainedModel) -> nn.Module:
    """The language head, or a scoring model's `score`."""
    return model.score if hasattr(model, "score") else model.get_output_embeddings()


def make_skeleton(
    folder: Path, order: StageOrder, spec: ModelSpec, mesh: Mesh, ds_config: dict, *, seed: int, adapter: Lora | None
) -> Skeleton:
    """The model of a stage without a single weight. E556 where the folder's weights do not fit its config."""
    config = AutoConfig.from_pretrained(folder)
    reward, dtype = order.model_kind == "reward", dtype_of(order)
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    if reward:
        config.num_labels = 1
    settings = {} if spec.attention is None else {"attn_implementation": spec.attention}
    with init_empty_weights(include_buffers=False):  # buffers are small, and computed when the model is made
        model = kind.from_config(config, dtype=dtype, **settings)
    model.tie_weights()
    model.config.use_cache = False  # while training; artifacts write it as true
    with suppress(OSError):  # as from_pretrained does: a folder without settings for generation has those of its config
        model.generation_config = None if reward else GenerationConfig.from_pretrained(folder)
    with Weights(folder, model) as weights:
        weights.check(model, new=frozenset({SCORE} if reward and not is_reward_folder(folder) else ()))
    sharder = make_sharder(model, mesh) if mesh.tp > 1 else None
    head, num_parameters = model.get_output_embeddings(), sum(weight.numel() for weight in model.parameters())
    peft = None
    if adapter is not None:
        settings = lora_config(adapter, "reward" if reward else "causal")
        peft = get_peft_model(model, settings, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    keep_only_block_inputs(model, order)
    return Skeleton(
        model=model,
        names={module: name for name, module in model.named_modules()},
        tied=head is not None and head.weight is model.get_input_embeddings().weight,
        peft=peft,
        folder=folder,
        mesh=mesh,
        sharder=sharder,
        partition=_partition(ds_config, order, mesh) if order.zero == 3 else None,
        dtype=dtype,
        seed=seed,
        num_parameters=num_parameters,
    )


def _partition(ds_config: dict, order: StageOrder, mesh: Mesh) -> deepspeed.zero.Init:
    return deepspeed.zero.Init(
        data_parallel_group=mesh.zero_group, config_dict_or_path=ds_config, mpu=mesh.mpu, dtype=dtype_of(order)
    )


def fill(skeleton: Skeleton, roots: Iterable[nn.Module]) -> list[Piece]:
    """The pieces of this rank: every weight under `roots`, modules of the skeleton, is given its values; then layers are cut.

    Under ZeRO-3 collective, with the same roots in the same order on all ranks.
    """
    filled: dict[nn.Parameter, nn.Parameter] = {}
    pieces: list[Piece] = []
    modules = [module for root in roots for module in root.modules()]
    with no_holes(), Weights(skeleton.folder, skeleton.model) as weights:
        for module in modules:
            for kind, blank in list(module._parameters.items()):
                if blank is None:
                    continue
                if blank not in filled:
                    name = f"{skeleton.names[module]}.{kind}"
                    piece = _piece(skeleton, weights, name, blank, transposed=isinstance(module, Conv1D))
                    filled[blank] = piece.weight
                    pieces.append(piece)
                module._parameters[kind] = filled[blank]  # a tied weight is filled once
            for kind, buffer in module._buffers.items():  # DeepSpeed moves none of a model that is partitioned
                module._buffers[kind] = None if buffer is None else buffer.to(skeleton.mesh.device)
    if skeleton.sharder is not None and skeleton.mesh.tp_group is not None:
        names = {module: skeleton.names[module] for module in modules}
        shard_layers(skeleton.model, names, skeleton.sharder, skeleton.mesh.tp_group)
    return pieces


def _piece(skeleton: Skeleton, weights: Weights, name: str, blank: nn.Parameter, *, transposed: bool) -> Piece:
    shape = tuple(blank.shape)
    cut = skeleton.sharder.cut(name, shape, transposed=transposed) if skeleton.sharder else None
    stored = _without_wrappers(name)
    try:
        local = weights.read(stored, cut)
    except KeyError:
        local = drawn(stored, shape, seed=skeleton.seed, std=initial_std(skeleton.model.config.get_text_config()))
        local = cut.of(local) if cut else local
    # A copy, never a view into the mapped file; a cut is one already.
    local = local.to(device=skeleton.mesh.device, dtype=skeleton.dtype, copy=cut is None)
    weight = nn.Parameter(local, requires_grad=blank.requires_grad)
    if cut is not None:
        weight.tensor_model_parallel = True  # DeepSpeed's norm counts a replicated weight on tensor rank 0 only
    if skeleton.partition is not None:
        skeleton.partition._convert_to_zero_parameters([weight])
    name = f"{PEFT_PREFIX}{name}" if skeleton.peft else name
    return Piece(name=name, weight=weight, shape=shape, cut=cut, tells=cut is not None or skeleton.mesh.tp_rank == 0)


def _without_wrappers(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
