"""A trained engine → stages/<stage>/artifact/: a plain Hugging Face folder that was opened again and checked, plus a manifest.

The same file whatever the ZeRO stage: weights gathered, tied weights once. With an adapter the folder is the merged model and
adapter/ holds the PEFT folder. Written under artifact.partial/, then renamed: what is there is whole.
"""

from __future__ import annotations

import collections
import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from launcher.errors import LauncherError, Problem
from launcher.rundir.artifact import write_manifest
from launcher.rundir.folder import RunDir, read_json, sync_folder
from launcher.rundir.inputs import parent_hashes, stage_inputs
from launcher.rundir.order import StageOrder
from launcher.train.adapters import merge, name_base
from launcher.train.families import stored_name
from launcher.train.gathering import whole_weights
from launcher.train.mesh import Mesh
from launcher.train.models import dtype_of, is_reward_folder, unpartitioned
from launcher.train.pieces import Piece
from launcher.train.ranks import Ranks, patient_group, wait_for_first

SHARD_BYTES = 5_000_000_000
State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a stage hands on: the Hugging Face model as this rank has it (config, adapter), and this rank's weights of it."""

    model: PreTrainedModel | PeftModel
    pieces: Sequence[Piece]
    mesh: Mesh
    num_parameters: int  # of the whole model, without an adapter


def hand_on(run: RunDir, order: StageOrder, ranks: Ranks, trained: Trained) -> Path:
    """Write the artifact of this stage and return its folder. Collective: every rank calls it, rank 0 writes.

    Where rank 0 finds that the folder does not verify, every rank raises.
    """
    stage_dir = run.stage(order.stage)
    problems: tuple[Problem, ...] = ()
    patient = patient_group()
    weights = whole_weights(trained.pieces, trained.mesh, _wanted(trained.model))
    if ranks.first:
        try:
            _write(run, order, trained, weights)
        except LauncherError as error:
            problems = error.problems
    else:
        collections.deque(weights, maxlen=0)  # take part in every weight, keep none
    problems = wait_for_first(problems, patient)
    if problems:
        raise LauncherError(problems)
    return stage_dir.artifact


def _wanted(model: PreTrainedModel | PeftModel) -> Callable[[Piece], bool]:
    """Of an adapter job only what was trained: the frozen base is in its own folder."""
    return (lambda piece: piece.weight.requires_grad) if isinstance(model, PeftModel) else (lambda piece: True)


def _write(run: RunDir, order: StageOrder, trained: Trained, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    stage_dir = run.stage(order.stage)
    partial = stage_dir.path / "artifact.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if isinstance(trained.model, PeftModel):
        model = _merged(run, order, trained.model, dict(weights), partial / "adapter")
        weights, expected = iter(untied(model, model.state_dict()).items()), count_parameters(model)
    else:
        model, expected = trained.model, trained.num_parameters
    shapes = write_weights(partial, ((stored_name(model.config, name), weight) for name, weight in weights))
    save_settings(model, partial, tokenizer=run.path / order.tokenizer)
    tensors, parameters = verify(partial, shapes, expected)
    write_manifest(partial, _facts(run, order, tensors=tensors, parameters=parameters))
    shutil.rmtree(stage_dir.artifact, ignore_errors=True)
    partial.rename(stage_dir.artifact)
    sync_folder(stage_dir.path)


def write_weights(folder: Path, weights: Iterator[tuple[str, torch.Tensor]]) -> dict[str, tuple[int, ...]]:
    """model.safetensors, or files of about SHARD_BYTES with an index, as transformers names them; the shapes by name.

    Streams: one file's tensors are in memory at a time. E558, behind the last one, where a value is not finite.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    files: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    wrong: list[str] = []
    total = 0

    def flush() -> None:
        save_file(held, folder / f"part{len(files)}", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, weight in weights:
        if held and sum(tensor.nbytes for tensor in held.values()) + weight.nbytes > SHARD_BYTES:
            flush()
        if not torch.isfinite(weight).all():
            wrong.append(name)
        held[name] = weight.detach().cpu().contiguous()
        shapes[name] = tuple(weight.shape)
        total += weight.nbytes
    if wrong:  # only now: the other ranks take part in every weight
        raise _unfit(folder, f"{wrong[0]} holds values that are not finite")
    flush()
    names = [f"model-{number + 1:05}-of-{len(files):05}.safetensors" for number in range(len(files))]
    names = ["model.safetensors"] if len(files) == 1 else names
    for number, name in enumerate(names):
        (folder / f"part{number}").rename(folder / name)
    if len(files) > 1:
        placed = {weight: names[number] for number, members in enumerate(files) for weight in members}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return shapes


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


def _merged(run: RunDir, order: StageOrder, module: PeftModel, state: State, adapter: Path) -> PreTrainedModel:
    """Save the adapter, load the base again without quantisation, merge. Rank 0 only."""
    with unpartitioned():
        base = load_base(run.path / order.model, order)
        with init_empty_weights():
            shape = type(base)(copy.deepcopy(base.config))
        # peft saves what it finds modules for, and a pipeline stage has no modules for the other stages' blocks
        whole = get_peft_model(shape, copy.deepcopy(module.peft_config["default"]), low_cpu_mem_usage=True)
        whole.save_pretrained(adapter, state_dict=state, save_embedding_layers=False)
        (adapter / "README.md").unlink(missing_ok=True)
        model = merge(base, adapter)
    name_base(adapter, _base_name(run, order))
    model.config.pad_token_id = module.get_base_model().config.pad_token_id
    return model


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
    """Whole parameters, each once."""
    return sum(weight.numel() for weight in model.parameters())


def save_settings(model: PreTrainedModel, folder: Path, *, tokenizer: Path) -> None:
    """Config and tokenizer as another program expects them: the cache on, no path of this machine."""
    config = copy.deepcopy(model.config)
    config.use_cache, config.architectures = True, [type(model).__name__]
    config.dtype = next(model.parameters()).dtype
    config.save_pretrained(folder)
    _mend_generation(model)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
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


def verify(folder: Path, expected: Mapping[str, tuple[int, ...]], parameters: int) -> tuple[int, int]:
    """Open every weight file again: names, shapes, and the number of parameters. (tensors, parameters)."""
    found: dict[str, tuple[int, ...]] = {}
    what = ""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  not a dict
                found[name] = tuple(weights.get_slice(name).get_shape())
                if 0 in found[name]:
                    what = what or f"{name} is empty"
    if found != expected:
        names = sorted(set(found.items()) ^ set(expected.items()))
        what = what or f"{len(names)} tensors differ from the model's in name or shape, first {names[0][0]}"
    total = sum(torch.Size(shape).numel() for shape in found.values())
    buffers = 0 if total == parameters else total - parameters
    if buffers < 0:
        what = what or f"{total} parameters in the file, {parameters} in the model"
    if what:
        raise _unfit(folder, what)
    return len(found), total


def _unfit(folder: Path, what: str) -> LauncherError:
    hint = "nothing was handed on; the last checkpoint is kept: resume the run"
    return LauncherError(Problem(code="E558", where=str(folder), what=what, hint=hint))
