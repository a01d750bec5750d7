"""(job.json, stage, data fingerprint, parents) -> one hash that names everything the result of a stage depends on.

DERIVE, stdlib only, shared by both sides: the ranks write it into the manifest of what they hand on, the control side
compares it to decide whether a finished stage is kept. The layout (ranks, ZeRO stage, micro-batch, attention kernel) is
left out: results are proved equal across layouts. Paths are left out as well: the fingerprint and the parents' hashes name
the content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from launcher.rundir.artifact import manifest_sha256
from launcher.rundir.folder import RunDir, read_json
from launcher.rundir.order import StageOrder
from launcher.units import MIB

# Settings of a stage that say how it is run, watched or named, but not what comes out.
_NOT_THE_RESULT = {"name", "from", "reward", "batch", "parallel", "data", "log_every", "checkpoint_every", "keep", "gate"}
_STAGE_ARTIFACT = "stages/"


def inputs_sha256(job_json: Mapping[str, object], stage_name: str, data_fingerprint: str, parents: Mapping[str, str]) -> str:
    """Hash of stage and model settings, seed, global batch, precision, data and parents. KeyError: no such stage."""
    stage = _stage(job_json, stage_name)
    text = {
        "stage": {key: value for key, value in stage.items() if key not in _NOT_THE_RESULT},
        "data": _without_source(_block(stage, "data")),
        "data_fingerprint": data_fingerprint,
        "model": {key: value for key, value in _block(job_json, "model").items() if key != "attention"},
        "seed": job_json.get("seed"),
        "batch.global": _block(stage, "batch").get("global") or _block(job_json, "batch").get("global"),
        "precision": job_json.get("precision"),
        "tf32": job_json.get("tf32") or None,
        "parents": dict(parents),
    }
    canonical = json.dumps(_without_none(text), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parent_stages(order: StageOrder) -> dict[str, str]:
    """Role ("model", "reward") -> the earlier stage that hands it on. The base model is not a stage and is not listed."""
    folders = {"model": order.model, "reward": order.reward_model or ""}
    return {role: path.split("/")[1] for role, path in folders.items() if path.startswith(_STAGE_ARTIFACT)}


def parent_hashes(run: RunDir, order: StageOrder) -> dict[str, str]:
    """Role -> hash of the parent's manifest. OSError where a parent has not finished."""
    return {role: manifest_sha256(run.stage(name).artifact) for role, name in parent_stages(order).items()}


def stage_inputs(run: RunDir, job_json: Mapping[str, object], order: StageOrder) -> str:
    """inputs_sha256 of one stage as the run folder stands: after prepare, and after its parents have finished."""
    fingerprint = read_json(run.stage(order.stage).prepared)["fingerprint"]
    parents = parent_hashes(run, order)
    if "model" not in parents:
        parents["base"] = weights_fingerprint(run.path / order.model)
    return inputs_sha256(job_json, order.stage, str(fingerprint), parents)


def weights_fingerprint(folder: Path) -> str:
    """Names a model folder by the names, sizes and first and last MiB of its weights, and by its config: cheap at any size.

    A base model may be a link to a folder of the user's, which has no manifest and is too large to hash at every start.
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(MIB))
            file.seek(max(0, size - MIB))
            digest.update(file.read(MIB))
    return digest.hexdigest()


def _stage(job_json: Mapping[str, object], stage_name: str) -> Mapping[str, object]:
    stages = job_json["stages"]
    if isinstance(stages, list):
        for stage in stages:
            if (stage.get("name") or stage.get("kind")) == stage_name:
                found: Mapping[str, object] = stage
                return found
    raise KeyError(stage_name)


def _block(parent: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _without_source(data: Mapping[str, object]) -> dict[str, object]:
    """The data settings without the place they are read from, which the fingerprint replaces."""
    return {
        key: _without_source(value) if isinstance(value, dict) and key == "held_out" else value
        for key, value in data.items()
        if key != "source"
    }


def _without_none(value: object) -> object:
    """Absent and null mean the same, so that a new optional field does not turn every finished stage stale."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value
