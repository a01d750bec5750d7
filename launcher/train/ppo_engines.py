"""The four models of PPO on DeepSpeed: actor and critic as two trained engines, reference and reward model frozen.

Legal in one process as long as every rank calls the engines in the same order. Frozen models are engines only under ZeRO-3,
which partitions them; below it an engine adds nothing to a plain module in eval mode. With an adapter the reference is the
actor with the adapter off, so there is no second copy of the policy, and the critic is trained by an adapter too (plus its
head): the memory for a job with an adapter is planned without full optimizer states.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from peft import inject_adapter_in_model
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.models.utils import add_hooks, remove_hooks

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir, read_json
from launcher.rundir.order import StageOrder
from launcher.spec.job import JobSpec
from launcher.spec.model import Lora
from launcher.spec.stages import Ppo
from launcher.train.adapters import attach_lora, lora_config
from launcher.train.agreement import compare_engine, refuse_wrong_config
from launcher.train.artifacts import Trained
from launcher.train.mesh import Mesh
from launcher.train.models import is_reward_folder, load_causal, load_reward, zero3_config
from launcher.train.optimizer import decay_groups, make_optimizer, tie_twins
from launcher.train.pieces import whole_pieces
from launcher.train.ppo_models import Models, TokenScores
from launcher.train.ranks import Ranks
from launcher.train.states import load_states, save_states
from launcher.train.swapping import swap_apart


def make_models(
    run: RunDir, job: JobSpec, stage: Ppo, order: StageOrder, ranks: Ranks, tokenizer: PreTrainedTokenizerBase
) -> Models:
    """Load and start all four. Collective. Dropout is 0 everywhere, or the first ratio of PPO would not be 1."""
    refuse_wrong_config(run, stage, order)
    ds_config = read_json(run.ds_config(order.stage))
    swap_apart(ds_config, run, order.stage)
    keep_alive = zero3_config(copy.deepcopy(ds_config), order)  # while it lives, models are loaded in pieces
    policy, rewards, adapter = run.path / order.model, run.path / _reward_model(order), job.model.adapter
    actor = load_causal(policy, order, job.model, tokenizer)
    critic = _load_critic(policy if stage.critic == "policy" else rewards, order, job, tokenizer)
    reference = load_causal(policy, order, job.model, tokenizer) if adapter is None else None
    scorer = TokenScores(_load_reward_model(rewards, order, job, tokenizer))
    if adapter is not None:
        torch.manual_seed(job.seed)  # adapters are drawn here, equal on all ranks and for every ZeRO stage
        actor = attach_lora(actor, adapter, "causal", zero=order.zero)
        _inject_adapter(critic, adapter)
    silenced = silence_dropout(actor) + silence_dropout(critic)
    for model in (actor, critic):
        _checkpoint_activations(model, order, adapter=adapter is not None)
    models = Models(
        actor=_trained(actor, stage, lr=stage.lr, ds_config=ds_config, order=order),
        critic=_trained(critic, stage, lr=stage.critic_lr, ds_config=ds_config, order=order),
        reference=None if reference is None else _frozen(reference, ds_config=ds_config, order=order, ranks=ranks),
        scorer=_frozen(scorer, ds_config=ds_config, order=order, ranks=ranks),
        end=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        temperature=stage.temperature,
        device=ranks.device,
        silenced=tuple(silenced),
    )
    del keep_alive
    return models


def refuse_other_tokenizer(run: RunDir, order: StageOrder, tokenizer: PreTrainedTokenizerBase) -> None:
    """The reward model scores the policy's token numbers as they are: both must read them in the same way."""
    theirs = AutoTokenizer.from_pretrained(run.path / _reward_model(order))
    mine_sha256, theirs_sha256 = tokenizer_sha256(tokenizer), tokenizer_sha256(theirs)
    if mine_sha256 != theirs_sha256:
        raise LauncherError(
            Problem(
                code="E565",
                where=f"stage {order.stage}",
                what=f"{order.tokenizer} has {len(tokenizer)} entries (sha256 {mine_sha256[:12]}), the tokenizer of"
                f" {order.reward_model} {len(theirs)} (sha256 {theirs_sha256[:12]})",
                hint="train the reward model from the same model as the policy",
            )
        )


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names how text becomes numbers: the whole fast tokenizer but for padding and truncation, and the special numbers."""
    text = json.loads(tokenizer.backend_tokenizer.to_str())
    text["padding"] = text["truncation"] = None
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return hashlib.sha256(json.dumps([text, special], sort_keys=True).encode()).hexdigest()


def _reward_model(order: StageOrder) -> str:
    assert order.reward_model is not None, "the planner gives every ppo stage a reward model"
    return order.reward_model


def _load_critic(folder: Path, order: StageOrder, job: JobSpec, tokenizer: PreTrainedTokenizerBase) -> TokenScores:
    """From the reward model it starts at that model's own opinion; from the policy with a head of zeros, so at value 0."""
    model = load_reward(folder, order, job.model, tokenizer)
    if not is_reward_folder(folder):
        with deepspeed.zero.GatheredParameters([model.score.weight], modifier_rank=0), torch.no_grad():
            model.score.weight.zero_()  # drawn, it would be another one under ZeRO-3
    return TokenScores(model)


def _load_reward_model(folder: Path, order: StageOrder, job: JobSpec, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if not is_reward_folder(folder):
        raise LauncherError(
            Problem(
                code="E556",
                where=f"stage {order.stage}",
                what=f"{order.reward_model} is no reward model: its config names no score head",
                hint="name a stage of kind reward in `reward`",
            )
        )
    return load_reward(folder, order, job.model, tokenizer)


def _inject_adapter(critic: TokenScores, adapter: Lora) -> None:
    """LoRA layers inside the critic, in place; of its own weights only the head goes on training."""
    config = lora_config(adapter, "reward")
    config.modules_to_save, config.exclude_modules = None, ["score"]  # the head itself is trained, not a copy of it
    dtype = critic.model.dtype
    inject_adapter_in_model(config, critic.model)
    for name, parameter in critic.named_parameters():
        parameter.requires_grad_("lora_" in name or name == "model.score.weight")
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)


def silence_dropout(model: nn.Module) -> list[str]:
    """Set every dropout to 0, as module or as attribute of an attention layer; the names of those that were not."""
    silenced = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.p = 0.0
            silenced.append(name)
        for attribute, value in vars(module).items():
            if "dropout" in attribute and isinstance(value, float) and value > 0:
                setattr(module, attribute, 0.0)
                silenced.append(f"{name}.{attribute}")
    return silenced


def _checkpoint_activations(model: nn.Module, order: StageOrder, *, adapter: bool) -> None:
    if order.checkpointing == "none":
        return
    inner = model.model if isinstance(model, TokenScores) else model
    # An adapter under ZeRO-3 needs the reentrant kind, and then inputs that ask for gradients (DeepSpeed pull request 8130).
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": adapter and order.zero == 3})
    if adapter:
        inner.enable_input_require_grads()


def _trained(
    model: nn.Module, stage: Ppo, *, lr: float, ds_config: dict[str, Any], order: StageOrder
) -> deepspeed.DeepSpeedEngine:
    """An engine with its own AdamW: the rendered config, the same numbers for actor and critic."""
    groups = decay_groups(model.parameters(), stage.weight_decay)
    optimizer = make_optimizer(groups, ds_config, lr=lr, betas=stage.betas, eps=stage.eps)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=copy.deepcopy(ds_config))
    tie_twins(engine)
    compare_engine(engine, stage, order)
    engine.train()
    return engine


def _frozen(model: nn.Module, *, ds_config: dict[str, Any], order: StageOrder, ranks: Ranks) -> nn.Module:
    """In eval mode and without gradients, in the precision of the trained models: the KL of equal weights is then 0."""
    model.requires_grad_(False)
    if order.zero < 3:
        return model.to(ranks.device).eval()
    config = copy.deepcopy(ds_config)
    config["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # returns None: not to be chained
    return engine


@contextlib.contextmanager
def whole_for_sampling(engine: deepspeed.DeepSpeedEngine) -> Iterator[nn.Module]:
    """The engine's module with all its weights on this rank, in eval mode; every rank must enter and leave.

    ZeRO-3 would gather each layer again for each token, and a rank whose answers are shorter would stop taking part: the
    others wait for ever. Gathered once, the ranks sample on their own. The hooks must be off meanwhile, or the first layer
    is partitioned again behind its forward pass.
    """
    module = engine.module
    module.eval()  # activation checkpointing switches the key/value cache off in training mode
    try:
        if engine.zero_optimization_stage() < 3:
            yield module
        else:
            with deepspeed.zero.GatheredParameters(list(module.parameters())):
                remove_hooks(engine)
                try:
                    yield module
                finally:
                    add_hooks(engine)
    finally:
        module.train()


def save_engines(models: Models, folder: Path, mesh: Mesh, *, step: int, extra: Mapping[str, Any]) -> None:
    """Masters and optimizer states of both trained engines, in a folder each, and `extra`. Collective."""
    for name, engine in (("actor", models.actor), ("critic", models.critic)):
        save_states(folder / name, engine, whole_pieces(engine.module), mesh, step=step, extra=extra)


def load_engines(models: Models, folder: Path, mesh: Mesh) -> dict[str, Any]:
    """Into freshly made engines, under any number of ranks and any ZeRO stage; the `extra` that was saved. Collective."""
    load_states(folder / "critic", models.critic, whole_pieces(models.critic.module), mesh)
    return load_states(folder / "actor", models.actor, whole_pieces(models.actor.module), mesh)


def trained_actor(models: Models, mesh: Mesh) -> Trained:
    """What the stage hands on. Gives back what ZeRO-3 has gathered ahead."""
    models.actor.empty_partition_cache()
    pieces = whole_pieces(models.actor.module)
    num_parameters = sum(math.prod(piece.shape) for piece in pieces)
    return Trained(model=models.actor.module, pieces=pieces, mesh=mesh, num_parameters=num_parameters)
