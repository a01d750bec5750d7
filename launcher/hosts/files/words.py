"""What ranks write for readers while they run, from a host with a disk of its own to the controller: a line as it is written.

Log and metrics grow and are told from where they were told before; markers and failures are told whole. DO, one stage's files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.rundir.folder import StageDir, write_atomic

MOST_BYTES = 256 * 2**10  # of one file in one message


def grown_files(stage: StageDir, ranks: range) -> dict[str, Path]:
    """What the ranks of one host append to, by its name in the stage's folder. Rank 0 alone writes metrics."""
    paths = [stage.rank_log(rank) for rank in ranks] + ([stage.metrics] if 0 in ranks else [])
    return {path.relative_to(stage.path).as_posix(): path for path in paths}


def whole_files(stage: StageDir, ranks: range) -> dict[str, Path]:
    paths = [path for rank in ranks for path in (stage.problem(rank), *markers(stage, rank))]
    paths += [stage.listening] if 0 in ranks else []
    return {path.relative_to(stage.path).as_posix(): path for path in paths}


def markers(stage: StageDir, rank: int) -> tuple[Path, Path]:
    """A rank that ends in order leaves one of them: it has finished, or it has left behind a checkpoint."""
    return stage.done(rank), stage.left(rank)


def finished_ranks(stage: StageDir, ranks: Iterable[int]) -> set[int]:
    """Those that have left a marker on this host's disk."""
    return {rank for rank in ranks if any(path.exists() for path in markers(stage, rank))}


@dataclass(slots=True)
class Words:
    """The host's side."""

    stage: StageDir
    ranks: range
    _told: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> inode and bytes that were told

    def __post_init__(self) -> None:
        """What is there before the ranks start came from the controller."""
        for name, path in grown_files(self.stage, self.ranks).items():
            if path.is_file():
                self._told[name] = (path.stat().st_ino, path.stat().st_size)

    def new(self) -> Iterator[dict[str, object]]:
        """What has to be told since the last look, markers first."""
        for name, path in whole_files(self.stage, self.ranks).items():
            if name not in self._told and path.is_file():
                self._told[name] = (0, 0)
                yield {"file": name, "at": 0, "text": _text(path.read_bytes()), "mtime_ns": path.stat().st_mtime_ns}
        for name, path in grown_files(self.stage, self.ranks).items():
            if path.is_file() and (word := self._grown(name, path)):
                yield word

    def _grown(self, name: str, path: Path) -> dict[str, object] | None:
        inode, told = self._told.get(name, (0, 0))
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            at = told if inode == stat.st_ino and told <= stat.st_size else 0  # a resumed stage wrote its metrics anew
            file.seek(at)
            text = file.read(MOST_BYTES)
        self._told[name] = (stat.st_ino, at + len(text))
        return {"file": name, "at": at, "text": _text(text), "mtime_ns": stat.st_mtime_ns} if text else None


def write_word(stage: StageDir, ranks: range, word: Mapping[str, object]) -> None:
    """The controller's side. A name that is none of this host's is passed over, and so is what would leave a gap."""
    name, text = str(word["file"]), str(word["text"])
    if path := whole_files(stage, ranks).get(name):
        write_atomic(path, text)
    elif path := grown_files(stage, ranks).get(name):
        _put(path, int(str(word["at"])), text.encode("utf-8", "surrogateescape"), int(str(word["mtime_ns"])))


def _put(path: Path, at: int, text: bytes, mtime_ns: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "wb") as file:
        if at > file.seek(0, os.SEEK_END):
            return
        file.seek(at)
        file.truncate()
        file.write(text)
    os.utime(path, ns=(mtime_ns, mtime_ns))  # the host's: whether all of it has come is seen by size and time


def _text(raw: bytes) -> str:
    """Bytes that are no UTF-8, also of a letter that is not whole yet, come out again as they were."""
    return raw.decode("utf-8", "surrogateescape")
