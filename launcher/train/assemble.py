"""Task → the engine that trains it. DO, collective: refuse, build, initialise, compare."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import deepspeed
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from launcher.rundir.order import StageOrder
from launcher.train.adapters import attach_lora, restore_dtype
from launcher.train.agreement import compare_engine, refuse_wrong_config
from launcher.train.artifacts import Trained
from launcher.train.balance import stage_blocks
from launcher.train.building import Skeleton, base_of, fill, head_of, keep_only_block_inputs, make_skeleton, where_saved
from launcher.train.engines import Engine, PipeEngine, PipeLoss, PlainEngine, WholeModel
from launcher.train.models import dtype_of, know_tokenizer, load_causal, load_reward, zero3_config
from launcher.train.optimizer import decay_groups, make_optimizer, tie_twins
from launcher.train.pieces import whole_pieces
from launcher.train.pipeline import build_stages
from launcher.train.scoring import TILE_TOKENS, Scorer
from launcher.train.sequence import share_sequences
from launcher.train.swapping import swap_apart
from launcher.train.task import Task
from launcher.train.tiling import tile_mlps


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """`engine` trains, `trained` is handed on."""

    engine: Engine
    trained: Trained


def assemble(task: Task) -> Assembled:
    """Refuse what would train wrongly, build, initialise, compare with the plan."""
    refuse_wrong_config(task.run, task.stage, task.order)
    ds_config = json.loads(task.run.ds_config(task.order.stage).read_text(encoding="utf-8"))
    swap_apart(ds_config, task.run, task.order.stage)
    assembled = _quantized(task, ds_config) if task.quantize else _by_pieces(task, ds_config)
    compare_engine(assembled.engine.raw, task.stage, task.order)
    return assembled


def _by_pieces(task: Task, ds_config: dict) -> Assembled:
    """From a skeleton that is filled with this rank's part."""
    order, mesh, folder = task.order, task.mesh, task.run.path / task.order.model
    skeleton = make_skeleton(folder, order, task.job.model, mesh, ds_config, seed=task.job.seed, adapter=task.adapter)
    know_tokenizer(skeleton.model, task.tokenizer, folder)
    engine = _pipeline(task, skeleton, ds_config) if mesh.pp > 1 else _plain(task, skeleton, ds_config)
    trained = Trained(model=skeleton.outer, pieces=engine.pieces, mesh=mesh, num_parameters=skeleton.num_parameters)
    return Assembled(engine=engine, trained=trained)


def _plain(task: Task, skeleton: Skeleton, ds_config: dict) -> PlainEngine:
    if task.mesh.sp > 1:
        share_sequences(skeleton.model, task.mesh)
        tile_mlps(skeleton, task.order)
    pieces = fill(skeleton, [skeleton.model])
    module = _scorer(skeleton.outer, task)
    raw = _initialize(module, task, ds_config)
    return PlainEngine(raw, task.order, task.mesh, pieces, task.objective)


def _quantized(task: Task, ds_config: dict) -> Assembled:
    """Data parallelism only: bitsandbytes packs whole matrices, so transformers loads the base."""
    order, reward = task.order, task.order.model_kind == "reward"
    partition = zero3_config(ds_config, order)  # kept alive while the model is loaded
    load = load_reward if reward else load_causal
    model = load(task.run.path / order.model, order, task.job.model, task.tokenizer, quantize=True)
    del partition
    assert task.adapter is not None, "the plan refuses a 4-bit base without an adapter"
    num_parameters = sum(getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters())
    outer = attach_lora(model, task.adapter, "reward" if reward else "causal", zero=order.zero)
    restore_dtype(outer, dtype_of(order))
    keep_only_block_inputs(model, order)
    module = _scorer(outer, task)
    raw = _initialize(module, task, ds_config)
    engine = PlainEngine(raw, order, task.mesh, whole_pieces(outer), task.objective)
    trained = Trained(model=outer, pieces=engine.pieces, mesh=task.mesh, num_parameters=num_parameters)
    return Assembled(engine=engine, trained=trained)


def _scorer(outer: PreTrainedModel | PeftModel, task: Task) -> Scorer:
    model = outer.get_base_model() if isinstance(outer, PeftModel) else outer
    return Scorer(
        outer,
        base_of(model),
        head_of(model),
        tiles=num_tiles(task.order),
        saved=where_saved(task.order),
        sp_group=task.mesh.sp_group,
    )


def whole_scorer(model: PreTrainedModel, task: Task) -> WholeModel:
    """A model that is whole on every rank, to be looked at with a stage's own measure."""
    return WholeModel(_scorer(model, task).to(task.mesh.device), task.mesh)


def _pipeline(task: Task, skeleton: Skeleton, ds_config: dict) -> PipeEngine:
    loss = PipeLoss(task.objective, tiles=num_tiles(task.order))
    blocks = stage_blocks(skeleton, task.order, tiles=loss.tiles)
    stages, pieces = build_stages(skeleton, blocks, score=loss.score, loss=loss, saved=where_saved(task.order))
    loss.head = skeleton.head
    raw = _initialize(stages, task, ds_config)
    return PipeEngine(raw, task.order, task.mesh, pieces, loss)


def _initialize(module: nn.Module, task: Task, ds_config: dict) -> Any:
    """DeepSpeed's engine with our optimizer and nothing of DeepSpeed's choosing."""
    stage, groups = task.stage, decay_groups(module.parameters(), task.stage.weight_decay)
    optimizer = make_optimizer(groups, ds_config, lr=stage.lr, betas=stage.betas, eps=stage.eps)
    raw, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config, mpu=task.mesh.mpu)
    tie_twins(raw)
    return raw


def num_tiles(order: StageOrder) -> int:
    """Tiles in which the head works, from the longest micro-batch that can come: the same on all ranks and in all steps."""
    sequences = order.micro_batch * (2 if order.kind in ("reward", "dpo") else 1)
    return max(1, -(-sequences * order.max_tokens // (order.sp * TILE_TOKENS)))
