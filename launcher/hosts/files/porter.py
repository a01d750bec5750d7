"""What an agent does with files: takes those that this host lacks, lists what a stage left here, gives what is asked for. DO.

One of these is the first line of a connection; paths are relative to the runs folder `root`.

    {"do": "take", "root": …, "run": "<job>/<run id>", "trees": […]}       then, as often as needed
      {"files": [[name, size, time], …]}  →  {"kind": "lacks", "which": [number, …]}  ←  the bytes of those, one after the other
      {"end": true}                       →  {"kind": "taken", "removed": n}         below the trees is nothing else now
    {"do": "list", "root": …, "run": …, "stage": …, "attempt": …}
                                          →  {"kind": "files", "files": […]} …, {"kind": "listed", "ours": true}
    {"do": "give", "root": …, "run": …, "stage": …}                        then, as often as needed
      {"wants": [name, …]}                →  for each {"kind": "file", "size": …, "mtime_ns": …} and its bytes
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.backends.shell import end_processes
from launcher.errors import EXIT_CLUSTER, EXIT_DONE, EXIT_RUN
from launcher.hosts.connection.wire import MAX_LINE, BadLine, parse, say
from launcher.hosts.files.disk import claim_path
from launcher.hosts.files.parcels import (
    CHUNK_BYTES,
    Arrivals,
    Parcel,
    Place,
    batches,
    files_below,
    is_same,
    parcel,
    parcels_as_list,
    parcels_from,
    run_place,
    stage_files,
)
from launcher.rundir.folder import RunDir
from launcher.units import bytes_text

GRACE_S = 5.0


class CannotKeep(OSError):
    """The disk does not take it."""


class CutOff(OSError):
    """The other end has gone in the middle of something."""


def carry(header: Mapping[str, object]) -> int:
    """The exit code. BadLine, which refuses the connection, where a line is none of the above or names what it may not."""
    porter = Porter(sys.stdin.buffer, sys.stdout.buffer)
    try:
        match header["do"]:
            case "take":
                porter.take(header)
            case "list":
                porter.list(header)
            case "give":
                porter.give(header)
    except CutOff as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CLUSTER
    except OSError as error:
        say({"kind": "refused", "code": "E513", "what": str(error)})
        return EXIT_RUN
    return EXIT_DONE


@dataclass(frozen=True, slots=True)
class Porter:
    """One connection's two ends."""

    inwards: BinaryIO
    outwards: BinaryIO

    def take(self, header: Mapping[str, object]) -> None:
        place, trees = run_place(_text(header, "root"), _text(header, "run")), _texts(header, "trees")
        folders = {tree: place.path(tree) for tree in trees}
        listed: set[str] = set()
        with Arrivals(place) as arrivals:
            while "end" not in (message := self._next()):
                parcels = parcels_from(message, "files")
                paths = [place.path(one.name) for one in parcels]
                lacks = [number for number, one in enumerate(parcels) if not is_same(paths[number], one)]
                _refuse_full(place, sum(parcels[number].size for number in lacks))
                say({"kind": "lacks", "which": lacks})
                for number in lacks:
                    self._receive(parcels[number], arrivals)
                listed |= {one.name for one in parcels}
        removed = sum(_remove_others(tree, folder, listed) for tree, folder in folders.items())
        say({"kind": "taken", "removed": removed})

    def list(self, header: Mapping[str, object]) -> None:
        """What is listed is at rest: whatever of the run is still alive here is ended first."""
        place, run = self._stage(header)
        end_processes(str(run.path), grace_s=GRACE_S)
        folder = place.root / place.below[0]
        parcels = [parcel(f"{place.below[0]}/{name}", path) for name, path in stage_files(folder)]
        for some in batches(parcels):
            say({"kind": "files", "files": parcels_as_list(some)})
        ours = claim_path(run, _text(header, "stage"), _text(header, "attempt")).is_symlink()
        say({"kind": "listed", "ours": ours})

    def give(self, header: Mapping[str, object]) -> None:
        place, _ = self._stage(header)
        while "end" not in (message := self._next()):
            for path in [place.path(name) for name in _texts(message, "wants")]:
                self._send(path)

    def _stage(self, header: Mapping[str, object]) -> tuple[Place, RunDir]:
        run = _text(header, "run")
        place = run_place(_text(header, "root"), run, stage=_text(header, "stage"))
        return place, RunDir(place.root / run)

    def _next(self) -> dict[str, object]:
        text = self.inwards.readline(MAX_LINE)
        if not text:
            raise CutOff("the connection ended")
        return parse(text)

    def _receive(self, wanted: Parcel, arrivals: Arrivals) -> None:
        try:
            with arrivals.open(wanted) as file:
                left = wanted.size
                while left:
                    if not (data := self.inwards.read(min(left, CHUNK_BYTES))):
                        raise CutOff("the connection ended")
                    file.write(data)
                    left -= len(data)
                arrivals.settle(file, wanted)
        except CutOff:
            raise
        except OSError as error:
            raise CannotKeep(f"{arrivals.place.root}/{wanted.name}: {error.strerror}") from None

    def _send(self, path: Path) -> None:
        """Exactly as many bytes as were told; a file that has become shorter meanwhile ends the connection."""
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            stat = os.fstat(handle)
            say({"kind": "file", "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
            left = stat.st_size
            while left:
                if not (data := file.read(min(left, CHUNK_BYTES))):
                    raise CutOff(f"{path} has become shorter")
                self.outwards.write(data)
                left -= len(data)
        self.outwards.flush()


def _remove_others(tree: str, folder: Path, listed: set[str]) -> int:
    """What lies below `folder` and was not listed goes: one step's file of an older attempt would spoil a checkpoint."""
    others = [path for name, path in files_below(folder) if f"{tree}/{name}" not in listed]
    for path in others:
        path.unlink(missing_ok=True)
    return len(others)


def _refuse_full(place: Place, coming_bytes: int) -> None:
    exists = next(parent for parent in (place.root, *place.root.parents) if parent.exists())
    free = shutil.disk_usage(exists).free
    if coming_bytes > free:
        raise CannotKeep(f"{bytes_text(coming_bytes)} have to come to {place.root}, where {bytes_text(free)} are free")


def _text(header: Mapping[str, object], key: str) -> str:
    value = header.get(key)
    if not isinstance(value, str):
        raise BadLine(f"{key}: not a text")
    return value


def _texts(header: Mapping[str, object], key: str) -> list[str]:
    values = header.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadLine(f"{key}: not a list of texts")
    return values
