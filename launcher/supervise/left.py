"""Run folder -> StageFacts: reads (and hashes) what one stage has left behind. DO, only reading; and sets a stage aside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from launcher.rundir.artifact import Damage, find_damage, read_manifest
from launcher.rundir.folder import RunDir, StageDir, read_json
from launcher.supervise.policy import CheckpointFact, StageFacts
from launcher.supervise.verify import Verifier

_STEP = re.compile(r"step(\d+)\Z")
_RANK = re.compile(r"rank(\d+)\.json\Z")
_FROM_PREPARE = "prepared.json"


def stage_facts(run: RunDir, stage: str, verifier: Verifier) -> StageFacts:
    folder = run.stage(stage)
    has_artifact = folder.artifact.is_dir()
    manifest = read_manifest(folder.artifact) if has_artifact else None
    hashed = _hashed(folder)
    return StageFacts(
        stage=stage,
        artifact=str(folder.artifact),
        has_artifact=has_artifact,
        damage=verifier.find_damage(folder.artifact) if has_artifact else [],
        inputs=str(manifest["inputs"]) if manifest and "inputs" in manifest else None,
        worlds=dict(_markers(folder)),
        checkpoints=list(_checkpoints(hashed)),
        damaged=_damaged(hashed),
        touched=any(path.name != _FROM_PREPARE for path in _entries(folder.path)),
    )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _markers(folder: StageDir) -> Iterator[tuple[int, int]]:
    for path in _entries(folder.done(0).parent):
        match = _RANK.match(path.name)
        try:
            world = read_json(path).get("world") if match else None
        except (OSError, ValueError):
            continue
        if match and isinstance(world, int):
            yield int(match[1]), world


def _hashed(folder: StageDir) -> dict[Path, list[Damage]]:
    """Every folder with a checkpoint's name, and its damage: each is hashed once."""
    return {path: find_damage(path) for path in _entries(folder.checkpoints) if _STEP.match(path.name)}


def _checkpoints(hashed: dict[Path, list[Damage]]) -> Iterator[CheckpointFact]:
    """Those that verify; a damaged one is as good as none. The ranks look again, and for themselves, before they load."""
    for path in hashed:
        manifest = read_manifest(path)
        if manifest is None or hashed[path]:
            continue
        try:
            # "format" came with checkpoints that any layout can read; one without it is of no use now
            step, inputs, precision, _ = (str(manifest[name]) for name in ("step", "inputs", "precision", "format"))
            yield CheckpointFact(step=int(step), inputs=inputs, precision=precision)
        except (KeyError, ValueError):
            continue


def _damaged(hashed: dict[Path, list[Damage]]) -> dict[int, Damage]:
    return {int(path.name.removeprefix("step")): damage[0] for path, damage in hashed.items() if damage}


def set_aside(run: RunDir, stage: str) -> Path | None:
    """Move all that the stage left, but what prepare wrote, to stages/.earlier/<stage>-<n>: nothing trained is deleted."""
    return _move(run, stage, [path for path in _entries(run.stage(stage).path) if path.name != _FROM_PREPARE])


def set_unfinished_artifact_aside(run: RunDir, stage: str) -> Path | None:
    """A stage that goes on from a checkpoint hands on anew: what it had written without finishing makes room."""
    return _move(run, stage, [path for path in (run.stage(stage).artifact,) if path.exists()])


def _move(run: RunDir, stage: str, paths: list[Path]) -> Path | None:
    if not paths:
        return None
    target = _free_name(run.path / "stages" / ".earlier", stage)
    target.mkdir(parents=True)
    for path in paths:
        path.rename(target / path.name)
    return target


def _free_name(parent: Path, stage: str) -> Path:
    number = 1
    while (parent / f"{stage}-{number}").exists():
        number += 1
    return parent / f"{stage}-{number}"
