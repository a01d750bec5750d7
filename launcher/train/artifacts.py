"""A trained engine → stages/<stage>/artifact/: a plain Hugging Face folder that was opened again and checked, plus a manifest.

The same file whatever the ZeRO stage: weights gathered, tied weights once. With an adapter the folder is the merged model and
adapter/ holds the PEFT folder. Written under artifact.partial/, then renamed: what is there is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import deepspeed
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from launcher.errors import LauncherError, Problem
from launcher.rundir.artifact import write_manifest
from launcher.rundir.folder import RunDir, read_json, sync_folder
from launcher.rundir.inputs import parent_hashes, stage_inputs
from launcher.rundir.order import StageOrder
from launcher.train.adapters import merge, name_base
from launcher.train.models import dtype_of, is_reward_folder, unpartitioned
from launcher.train.ranks import Ranks, broadcast

State = dict[str, torch.Tensor]


def hand_on(run: RunDir, order: StageOrder, ranks: Ranks, engine) -> Path:
    """Write the artifact of this stage and return its folder. Collective: every rank calls it, rank 0 writes.

    `engine` is what deepspeed.initialize returned; its module a PreTrainedModel or a PeftModel around one. Where rank 0 finds
    that the folder does not verify, every rank raises.
    """
    stage_dir = run.stage(order.stage)
    state = full_state(engine, adapter_only=isinstance(engine.module, PeftModel))
    problems: tuple[Problem, ...] = ()
    if ranks.first:
        try:
            _write(run, order, engine.module, state)
        except LauncherError as error:
            problems = error.problems
    problems = broadcast(problems)
    if problems:
        raise LauncherError(problems)
    return stage_dir.artifact


def full_state(engine, *, adapter_only: bool = False) -> State:
    """Every whole weight on the CPU of rank 0, an empty dict elsewhere. Under ZeRO-3 gathered layer by layer. Collective."""
    if engine.zero_optimization_partition_weights():
        # The name says 16 bit; the dtype is the parameters' own.
        return engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapter_only) or {}
    if deepspeed.comm.get_rank() != 0:
        return {}
    wanted = {name for name, weight in engine.module.named_parameters() if weight.requires_grad or not adapter_only}
    weights = engine.module.state_dict()
    return {
        name: weight.detach().cpu()
        for name, weight in weights.items()
        if name in wanted or (not adapter_only and isinstance(weight, torch.Tensor))
    }


def _write(run: RunDir, order: StageOrder, module: PreTrainedModel, state: State) -> None:
    stage_dir = run.stage(order.stage)
    partial = stage_dir.path / "artifact.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if isinstance(module, PeftModel):
        model, state = _merged(run, order, module, state, partial / "adapter")
    else:
        model = module
    state = untied(model, state)
    save_plain(model, state, partial, tokenizer=run.path / order.tokenizer)
    tensors, parameters = verify(partial, state, count_parameters(model))
    write_manifest(partial, _facts(run, order, tensors=tensors, parameters=parameters))
    shutil.rmtree(stage_dir.artifact, ignore_errors=True)
    partial.rename(stage_dir.artifact)
    sync_folder(stage_dir.path)


def _facts(run: RunDir, order: StageOrder, *, tensors: int, parameters: int) -> Mapping[str, object]:
    return {
        "stage": order.stage,
        "kind": order.kind,
        "model_kind": order.model_kind,
        "inputs": stage_inputs(run, read_json(run.job_json), order),
        "parents": parent_hashes(run, order),
        "data_fingerprint": read_json(run.stage(order.stage).prepared)["fingerprint"],
        "tensors": tensors,
        "parameters": parameters,
    }


def _merged(run: RunDir, order: StageOrder, module: PeftModel, state: State, adapter: Path) -> tuple[PreTrainedModel, State]:
    """Save the adapter, load the base again without quantisation, merge. Rank 0 only."""
    module.save_pretrained(adapter, state_dict=state, save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)
    with unpartitioned():
        model = merge(load_base(run.path / order.model, order), adapter)
    name_base(adapter, _base_name(run, order))
    model.config.pad_token_id = module.get_base_model().config.pad_token_id
    return model, model.state_dict()


def load_base(folder: Path, order: StageOrder) -> PreTrainedModel:
    """The unquantised model that an adapter of this stage belongs to, on the CPU."""
    if order.model_kind == "reward":
        labels = {} if is_reward_folder(folder) else {"num_labels": 1}
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype_of(order), **labels)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype_of(order))


def _base_name(run: RunDir, order: StageOrder) -> str:
    """What adapter_config.json calls its base: the hub id or folder the user gave, or the stage it comes from."""
    source = read_json(run.job_json).get("model", {}).get("source")
    return str(source) if order.model.startswith("base/") and source else order.model


def untied(model: PreTrainedModel, state: State) -> State:
    """Without the second name of tied weights: ZeRO 0-2 list the head beside the embedding, ZeRO 3 does not."""
    if not model.config.get_text_config().tie_word_embeddings:
        return state
    return {name: weight for name, weight in state.items() if name not in (model._tied_weights_keys or {})}


def count_parameters(model: PreTrainedModel) -> int:
    """Whole parameters, each once, also where ZeRO-3 keeps only a shard of each here."""
    return sum(getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters())


def save_plain(model: PreTrainedModel, state: State, folder: Path, *, tokenizer: Path) -> None:
    """Config, weights and tokenizer as another program expects them: the cache on, no path of this machine."""
    cache, model.config.use_cache = model.config.use_cache, True
    try:
        _mend_generation(model)
        model.save_pretrained(folder, state_dict=state)
    finally:
        model.config.use_cache = cache
    for file in tokenizer.iterdir():
        if file.is_file() and file.name != "manifest.json" and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    _drop_local_names(folder / "config.json")


def _mend_generation(model: PreTrainedModel) -> None:
    """Old hub models carry sampling settings next to do_sample: false, which transformers refuses to save."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    settings.pad_token_id = model.config.pad_token_id
    settings.use_cache = True
    if settings.eos_token_id is None:
        settings.eos_token_id = model.config.eos_token_id
    if not settings.do_sample and any(getattr(settings, name) not in (None, 1.0) for name in ("temperature", "top_p")):
        settings.do_sample = True


def _drop_local_names(path: Path) -> None:
    """Where the model lay here, and code of its first author that was neither run nor is handed on."""
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in ("_name_or_path", "auto_map")}
    if kept != config:
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def verify(folder: Path, state: State, parameters: int) -> tuple[int, int]:
    """Open every weight file again: names, shapes, finite values, and the number of parameters. (tensors, parameters)."""
    found: dict[str, tuple[int, ...]] = {}
    what = ""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  not a dict
                tensor = weights.get_tensor(name)
                found[name] = tuple(tensor.shape)
                if not tensor.numel():
                    what = what or f"{name} is empty"
                elif not torch.isfinite(tensor).all():
                    what = what or f"{name} holds values that are not finite"
    expected = {name: tuple(weight.shape) for name, weight in state.items()}
    if found != expected:
        names = sorted(set(found.items()) ^ set(expected.items()))
        what = what or f"{len(names)} tensors differ from the model's in name or shape, first {names[0][0]}"
    total = sum(torch.Size(shape).numel() for shape in found.values())
    buffers = 0 if total == parameters else total - parameters
    if buffers < 0:
        what = what or f"{total} parameters in the file, {parameters} in the model"
    if what:
        hint = "nothing was handed on; the last checkpoint is kept: resume the run"
        raise LauncherError(Problem(code="E558", where=str(folder), what=what, hint=hint))
    return len(found), total
