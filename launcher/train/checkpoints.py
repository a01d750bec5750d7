"""Checkpoints: what a stage can go on from. Written elsewhere, listed with hashes, then renamed to checkpoints/step<N>.

DO, on the nodes. A folder without a manifest that verifies is not a checkpoint; one of another layout or of other inputs is
refused by name and left where it is. Nothing half-written is ever used.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from launcher.rundir.artifact import find_damage, read_manifest, write_manifest
from launcher.rundir.folder import StageDir, sync_folder
from launcher.rundir.order import StageOrder
from launcher.train.ranks import Ranks, barrier, broadcast

WORK = ".work"  # beside the finished ones, on the same file system, so that finishing is one rename

NAMES = {"zero": "ZeRO stage", "world": "number of ranks", "inputs": "hash of settings, data and parents"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """The checkpoint to go on from, and why newer ones were not taken, a line each."""

    folder: Path | None
    step: int
    notices: tuple[str, ...]


def work_folder(stage_dir: StageDir) -> Path:
    return stage_dir.checkpoints / WORK


def seal(stage_dir: StageDir, written: Path, order: StageOrder, ranks: Ranks, *, step: int, inputs: str, keep: int) -> None:
    """Turn the folder that all ranks have just written into checkpoints/step<N>, and prune to `keep`. Collective."""
    barrier()  # every rank's files are there before the list is made
    if ranks.first:
        final = stage_dir.checkpoints / f"step{step}"
        facts = {"stage": order.stage, "step": step, "inputs": inputs, **_layout(order)}
        write_manifest(written, facts)
        shutil.rmtree(final, ignore_errors=True)
        written.rename(final)
        sync_folder(stage_dir.checkpoints)
        for old in finished(stage_dir)[keep:]:
            shutil.rmtree(old)
    barrier()


def finished(stage_dir: StageDir) -> list[Path]:
    """Folders that carry a checkpoint's name and a manifest, newest step first."""
    if not stage_dir.checkpoints.is_dir():
        return []
    named = [path for path in stage_dir.checkpoints.glob("step*") if path.name[4:].isdigit() and read_manifest(path)]
    return sorted(named, key=lambda path: int(path.name[4:]), reverse=True)


def find_resume(stage_dir: StageDir, order: StageOrder, ranks: Ranks, *, inputs: str) -> Resume:
    """The newest checkpoint that verifies and fits; rank 0 looks, all ranks get the same answer. Collective."""
    if ranks.first:
        shutil.rmtree(work_folder(stage_dir), ignore_errors=True)  # of a run that died while it wrote
    return broadcast(_newest(stage_dir, order, inputs) if ranks.first else None)


def _newest(stage_dir: StageDir, order: StageOrder, inputs: str) -> Resume:
    notices: list[str] = []
    for folder in finished(stage_dir):
        reason = refusal(folder, order, inputs)
        if reason is None:
            return Resume(folder=folder, step=int(folder.name[4:]), notices=tuple(notices))
        notices.append(f"checkpoint {folder.name} is not used: {reason}")
    return Resume(folder=None, step=0, notices=tuple(notices))


def refusal(folder: Path, order: StageOrder, inputs: str) -> str | None:
    """Why this checkpoint cannot be gone on from; None where it can. Cheap reasons first, hashes last."""
    manifest = read_manifest(folder) or {}
    wanted = {"stage": order.stage, "inputs": inputs, **_layout(order)}
    for key, value in wanted.items():
        if manifest.get(key) != value:
            return f"its {NAMES.get(key, key)} is {str(manifest.get(key))[:12]}, this run's is {str(value)[:12]}"
    damage = find_damage(folder)
    if damage:
        return f"{damage[0].file} {damage[0].what}"
    return _without_optimizer(folder)


def _layout(order: StageOrder) -> dict[str, object]:
    """What DeepSpeed's own files depend on: it cannot go on from those of another layout."""
    return {"world": order.world, "zero": order.zero, "precision": order.precision}


def _without_optimizer(folder: Path) -> str | None:
    """DeepSpeed goes on from random weights when `latest` is missing, with no error; a weights-only folder has none."""
    latest = folder / "latest"
    if not latest.is_file():
        return "it holds no optimizer state (no file `latest`): weights only"
    if not any((folder / latest.read_text(encoding="utf-8").strip()).glob("*_states.pt")):
        return "the folder that `latest` names holds no states"
    return None
