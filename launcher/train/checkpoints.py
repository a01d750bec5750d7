"""Checkpoints: what a stage can go on from. Written elsewhere, listed with hashes, then renamed to checkpoints/step<N>.

DO, on the nodes. A folder without a manifest that verifies is not a checkpoint; one of other inputs is refused by name and left
where it is; one of another layout is gone on from, and said (train/states.py). Nothing half-written is ever used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.rundir.artifact import MANIFEST, file_entry, find_damage, read_manifest, write_manifest
from launcher.rundir.folder import StageDir, sync_folder, write_json
from launcher.rundir.order import StageOrder
from launcher.train.ranks import Ranks, barrier, broadcast, gather, tends

WORK = ".work"  # beside the finished ones, on the same file system, so that finishing is one rename

FORMAT = 2  # 1: DeepSpeed's own files, of one layout only
MUST_FIT = {"format": "format", "stage": "stage", "inputs": "hash of settings, data and parents", "precision": "precision"}
DEGREES = ("dp", "tp", "pp", "sp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """The checkpoint to go on from, why newer ones were not taken and what else the user should know, a line each."""

    folder: Path | None
    step: int
    notices: tuple[str, ...]


def work_folder(stage_dir: StageDir) -> Path:
    return stage_dir.checkpoints / WORK


def seal(stage_dir: StageDir, written: Path, order: StageOrder, ranks: Ranks, *, step: int, inputs: str, keep: int) -> None:
    """Turn the folder that all ranks have just written into checkpoints/step<N>, and prune to `keep`. Collective.

    Each rank hashes its own rank<N>.* files, all at once: nobody waits while rank 0 reads the states of a thousand others.
    Of several disks each gets the whole manifest and the files of its own ranks; put together they are the checkpoint.
    """
    told = gather((_own_entries(written, ranks.rank), tends()))
    entries = {name: entry for theirs, _ in told for name, entry in theirs.items()}
    if ranks.first:
        write_manifest(written, {"step": step, **_facts(order, inputs)}, entries=entries)
    if sum(tending for _, tending in told) > 1:
        manifest = broadcast(read_manifest(written))
        if tends() and not ranks.first:
            write_json(written / MANIFEST, manifest)
    if tends():
        final = stage_dir.checkpoints / f"step{step}"
        shutil.rmtree(final, ignore_errors=True)
        written.rename(final)
        sync_folder(stage_dir.checkpoints)
    barrier()  # before an older one goes, the new one is in its place everywhere
    if tends():
        for old in finished(stage_dir)[keep:]:
            shutil.rmtree(old)
    barrier()


def _own_entries(written: Path, rank: int) -> dict[str, dict[str, object]]:
    paths = sorted(written.rglob(f"rank{rank}.*"))
    return {path.relative_to(written).as_posix(): file_entry(path) for path in paths}


def _facts(order: StageOrder, inputs: str) -> dict[str, object]:
    """What the manifest tells besides files and step: what must fit, and the layout, which need not."""
    degrees = {name: getattr(order, name) for name in DEGREES}
    settled = {"format": FORMAT, "stage": order.stage, "inputs": inputs, "precision": order.precision}
    return {**settled, "world": order.world, **degrees, "zero": order.zero}


def finished(stage_dir: StageDir) -> list[Path]:
    """Folders that carry a checkpoint's name and a manifest, newest step first."""
    if not stage_dir.checkpoints.is_dir():
        return []
    named = [path for path in stage_dir.checkpoints.glob("step*") if path.name[4:].isdigit() and read_manifest(path)]
    return sorted(named, key=lambda path: int(path.name[4:]), reverse=True)


def find_resume(stage_dir: StageDir, order: StageOrder, ranks: Ranks, *, inputs: str) -> Resume:
    """The newest checkpoint that verifies and fits; all ranks share the hashing and get the same answer. Collective."""
    if tends():
        shutil.rmtree(work_folder(stage_dir), ignore_errors=True)  # of a run that died while it wrote
    notices: list[str] = []
    for folder in broadcast(finished(stage_dir) if ranks.first else None):
        reason = broadcast(refusal(folder, order, inputs) if ranks.first else None) or _damage(folder, ranks)
        if reason is None:
            notices += broadcast(_moves(folder, order) if ranks.first else None)
            return Resume(folder=folder, step=int(folder.name[4:]), notices=tuple(notices))
        notices.append(f"checkpoint {folder.name} is not used: {reason}")
    return Resume(folder=None, step=0, notices=tuple(notices))


def refusal(folder: Path, order: StageOrder, inputs: str) -> str | None:
    """Why a checkpoint cannot be gone on from as far as its manifest says; None where it can."""
    manifest = read_manifest(folder) or {}
    wanted = _facts(order, inputs)
    for key, name in MUST_FIT.items():
        if manifest.get(key) != wanted[key]:
            return f"its {name} is {str(manifest.get(key))[:12]}, this run's is {str(wanted[key])[:12]}"
    return None


def _damage(folder: Path, ranks: Ranks) -> str | None:
    """The first file that is not as it was written. Collective: every rank hashes its part of the files."""
    damage = [one for theirs in gather(find_damage(folder, part=ranks.rank, parts=ranks.world)) for one in theirs]
    first = min(damage, key=lambda one: one.file, default=None)
    return None if first is None else f"{first.file} {first.what}"


def _moves(folder: Path, order: StageOrder) -> list[str]:
    """One line where the layout is another one than when the checkpoint was saved."""
    then, now = read_manifest(folder) or {}, _facts(order, "")
    if all(then.get(name) == now[name] for name in ("world", *DEGREES, "zero")):
        return []
    return [f"checkpoint {folder.name} was saved by {_layout_text(then)}; continued by {_layout_text(now)}"]


def _layout_text(facts: Mapping[str, object]) -> str:
    """`4 ranks as dp 2 x tp 2, ZeRO 1`; degrees of 1 are left out."""
    degrees = [f"{name} {facts[name]}" for name in DEGREES if name == "dp" or facts[name] != 1]
    ranks = "1 rank" if facts["world"] == 1 else f"{facts['world']} ranks"
    return f"{ranks} as {' x '.join(degrees)}, ZeRO {facts['zero']}"
