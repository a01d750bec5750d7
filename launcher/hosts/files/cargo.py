"""(run folder, stage) -> files that its hosts must have, and where an attempt leaves what it writes. DERIVE, only looking."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from launcher.hosts.files.disk import CONTROLLER
from launcher.hosts.files.parcels import Parcel, files_below, name_of, stage_files
from launcher.rundir.artifact import read_manifest
from launcher.rundir.folder import RunDir, StageDir, read_json, write_atomic, write_json
from launcher.rundir.order import read_order

# In a user's model folder, and never read: only safetensors are (train/base.py).
NEVER_READ = frozenset((".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".tflite", ".ot"))
FROM_PREPARE = "prepared.json"  # made here, before any rank
_OF_RANK = re.compile(r"/rank(\d+)\.[^/]*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """Name below the runs folder -> where it lies here; and the folders below which a host shall have nothing else."""

    files: Mapping[str, Path]
    trees: tuple[str, ...]


def cargo_of(run: RunDir, stage: str) -> Cargo:
    """Job, rendered files, prepared rows, the folders that the stage loads, and its own as it stands.

    Ranks that only meet (`doctor`) have no order, and read nothing.
    """
    if not run.order(stage).exists():
        return Cargo(files={}, trees=())
    order, own = read_order(run.order(stage)), name_of(run)[1]
    loaded = dict.fromkeys(folder for folder in (order.model, order.tokenizer, order.reward_model) if folder)
    rows = os.path.dirname(os.path.normpath(f"{own}/{read_json(run.stage(stage).prepared)['train']}"))
    files = {f"{own}/{run.job_json.name}": run.job_json}
    trees = {
        f"{own}/{run.rendered.name}": dict(files_below(run.rendered)),
        rows: dict(files_below(run.path.parent.parent / rows)),
        f"{own}/stages/{stage}": dict(_stage_cargo(run.stage(stage))),
        **{f"{own}/{folder}": dict(_loaded_files(run.path / folder)) for folder in loaded},
    }
    for tree, found in trees.items():
        files |= {f"{tree}/{name}": path for name, path in found.items()}
    return Cargo(files=files, trees=tuple(trees))


def _stage_cargo(stage: StageDir) -> Iterator[tuple[str, Path]]:
    """A checkpoint goes with all its files or not at all."""
    whole = {folder.name for folder in stage.checkpoints.glob("step*") if is_complete(folder)}
    for name, path in stage_files(stage.path):
        parts = name.split("/")
        if parts[0] != stage.checkpoints.name or (len(parts) > 2 and parts[1] in whole):
            yield name, path


def is_complete(folder: Path) -> bool:
    """Every file of the manifest is there with its size; hashes are for the ranks, which share the work."""
    manifest = read_manifest(folder)
    listed = manifest["files"] if manifest else None
    return isinstance(listed, dict) and all(_has_size(folder / name, entry.get("bytes")) for name, entry in listed.items())


def _has_size(path: Path, size: object) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _loaded_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Of a model or tokenizer folder, which may be a link, and in a hub's cache holds links."""
    real = Path(os.path.realpath(folder))
    for parent, folders, names in os.walk(real):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix not in NEVER_READ and path.is_file():
                yield path.relative_to(real).as_posix(), path


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """Where the ranks of the last attempt wrote, if not here. Kept as away.json until all of it has come back."""

    attempt: str
    disks: dict[str, tuple[int, ...]]  # host that claimed it (CONTROLLER: this disk) -> the ranks that wrote there
    done: dict[str, str] = field(default_factory=dict)  # the ranks' markers, where all have finished: written when all is here

    @property
    def others(self) -> tuple[str, ...]:
        return tuple(disk for disk in self.disks if disk != CONTROLLER)


def read_away(stage: StageDir) -> Away | None:
    """None where nothing is away, or where another version has written what."""
    try:
        return TypeAdapter(Away).validate_json(stage.away.read_bytes())
    except (OSError, ValidationError):
        return None


def write_away(stage: StageDir, away: Away) -> None:
    write_json(stage.away, asdict(away))


def arrive(stage: StageDir, away: Away) -> None:
    """All of it is here: now the markers may say so."""
    for name, text in away.done.items():
        write_atomic(stage.path / name, text)
    stage.away.unlink(missing_ok=True)


def plan_fetch(away: Away, offers: Mapping[str, Mapping[str, Parcel]]) -> dict[str, list[Parcel]]:
    """Disk -> what is fetched from it: every file from where it was written, as copies on other disks are older.

    Names are relative to the stage's folder. What was handed on is of use only where all ranks have finished.
    """
    writers = {rank: disk for disk, ranks in away.disks.items() for rank in ranks}
    wanted: dict[str, list[Parcel]] = {disk: [] for disk in offers}
    for name in dict.fromkeys(name for offered in offers.values() for name in offered):
        if name.startswith("artifact/") and not away.done:
            continue
        disk = _origin(name, writers, offers)
        if disk is not None:
            wanted[disk].append(offers[disk][name])
    return wanted


def _origin(name: str, writers: Mapping[int, str], offers: Mapping[str, Mapping[str, Parcel]]) -> str | None:
    """A rank's own file comes from the rank's disk, all others from that of rank 0. None: it lies here, or nobody has it."""
    if name == FROM_PREPARE:
        return None
    rank = _OF_RANK.search(name)
    writer = writers.get(int(rank[1]) if rank else 0)
    if writer == CONTROLLER:
        return None
    if writer is not None and name in offers.get(writer, ()):
        return writer
    if name.startswith("checkpoints/"):  # of an earlier attempt, with other ranks or on other disks
        return next((disk for disk, offered in offers.items() if name in offered), None)
    return None
