"""Files on their way between two disks: their names are checked before anything is touched, they are whole or absent. DO.

A name is relative to the runs folder, as a run reaches out of its own for prepared rows (`<runs>/.cache/`). Both ends check
what the other one names: nothing is read or written but plain files below agreed folders, and none through a link.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from launcher.hosts.connection.wire import BadLine
from launcher.hosts.files.disk import ARRIVING, WORDS
from launcher.rundir.artifact import MANIFEST
from launcher.rundir.folder import RunDir

CACHE = ".cache"
MEETING = ".doctor/"  # the one run folder whose job is hidden (supervise/rendezvous.py)
CHUNK_BYTES = 2**20
BATCH = 500  # files that are named in one line
# Of a stage's folder: what the controller alone writes, or what is not finished.
STAYS = frozenset((*WORDS, "hosts.json", "away.json", "artifact.partial"))
LAUNCHER_LOG = "logs/launcher.log"
_PARCELS = TypeAdapter(list[tuple[StrictStr, Annotated[StrictInt, Field(ge=0)], StrictInt]])


class Strange(BadLine):
    """A name that leads elsewhere than to files of this run."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One file: where it lies below the runs folder, and what tells it from an older one."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Place:
    """The runs folder of this side, and the folders in it below which files may be named."""

    root: Path
    below: tuple[str, ...]

    def path(self, name: str) -> Path:
        """Where the file lies or will lie. Strange where that is not plainly below an agreed folder."""
        folder = next((folder for folder in self.below if name.startswith(f"{folder}/")), None)
        if folder is None or not _plain(name.removeprefix(f"{folder}/")):
            raise Strange(f"{name!r} is not a file of this run")
        path = self.root
        for part in name.split("/"):
            path /= part
            if path.is_symlink():
                raise Strange(f"{name!r} leads through a link")
        return path


def run_place(root: str, run: str, *, stage: str | None = None) -> Place:
    """For files of one run and for prepared rows; with `stage`, for files of that stage alone."""
    folders = (CACHE, run) if stage is None else (f"{run}/stages/{stage}",)
    if not os.path.isabs(root) or run.count("/") != 1 or "/" in (stage or "") or not _plain(folders[-1].removeprefix(MEETING)):
        raise Strange(f"{root!r}, {run!r}, {stage!r} name no run")
    return Place(Path(root), folders)


def name_of(run: RunDir) -> tuple[str, str]:
    """(runs folder, name of the run below it)."""
    return str(run.path.parent.parent), f"{run.path.parent.name}/{run.path.name}"


def parcel(name: str, path: Path) -> Parcel:
    """OSError where there is no such file."""
    stat = path.stat()
    return Parcel(name, stat.st_size, stat.st_mtime_ns)


def is_same(path: Path, wanted: Parcel) -> bool:
    try:
        return parcel(wanted.name, path) == wanted
    except OSError:
        return False


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """(relative name, path) of every plain file that is not hidden. Links are passed over, but for `folder` itself."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix(), path


def stage_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The same for the folder of a stage, without what stays where it is."""
    for name, path in files_below(folder):
        if name.split("/")[0] not in STAYS and name != LAUNCHER_LOG:
            yield name, path


def manifests_last(names: Iterable[str]) -> list[str]:
    """A folder without its manifest is not finished: what is cut off is then known to be."""
    return sorted(names, key=lambda name: (name.rsplit("/", 1)[-1] == MANIFEST, name))


def batches(parcels: Sequence[Parcel]) -> Iterator[Sequence[Parcel]]:
    for start in range(0, len(parcels), BATCH):
        yield parcels[start : start + BATCH]


def parcels_as_list(parcels: Iterable[Parcel]) -> list[list[object]]:
    return [[one.name, one.size, one.mtime_ns] for one in parcels]


def parcels_from(message: Mapping[str, object], key: str) -> list[Parcel]:
    """BadLine where it is no list of [name, size, time]."""
    try:
        return [Parcel(*fields) for fields in _PARCELS.validate_python(message.get(key))]
    except ValidationError:
        raise BadLine(f"{key}: not a list of files") from None


@dataclass(slots=True)
class Arrivals:
    """Files that come in: written elsewhere on the same disk, then renamed to their place with their own time."""

    place: Place
    _folders: dict[Path, Path] = field(default_factory=dict)

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, wanted: Parcel) -> BinaryIO:
        top = self.place.root / (CACHE if wanted.name.startswith(f"{CACHE}/") else "/".join(wanted.name.split("/")[:2]))
        if top not in self._folders:
            top.mkdir(parents=True, exist_ok=True)
            self._folders[top] = Path(tempfile.mkdtemp(dir=top, prefix=ARRIVING))
        return (self._folders[top] / "file").open("wb")

    def settle(self, file: BinaryIO, wanted: Parcel) -> None:
        """The file is whole: to its place. OSError where it cannot be there."""
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.utime(file.name, ns=(wanted.mtime_ns, wanted.mtime_ns))
        path = self.place.path(wanted.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file.name, path)


def _plain(name: str) -> bool:
    """Every part is a name, and a visible one. `..` begins with a dot too."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return "\0" not in name and all(part and not part.startswith(".") for part in name.split("/"))
