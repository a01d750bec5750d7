"""Whether every host has the folder of the runs: a file written here is read on each, and one of each is seen here. DO."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LAG_S = 4.0  # until a new file on a network file system is seen everywhere
_HERE = "here"


@dataclass(frozen=True, slots=True)
class Share:
    """A folder for this one question, and what its files hold."""

    folder: Path
    text: str

    def question(self, number: int) -> dict[str, str]:
        """What the host with this number is asked to read and to write."""
        return {"theirs": str(self.folder / _HERE), "ours": str(self._answer(number)), "text": self.text}

    def missing(self, numbers: Collection[int]) -> set[int]:
        """Hosts, by number, whose file does not come to be seen here."""
        deadline_s = time.monotonic() + LAG_S
        while (left := {number for number in numbers if not self._answered(number)}) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return left

    def _answer(self, number: int) -> Path:
        return self.folder / f"host{number}"

    def _answered(self, number: int) -> bool:
        try:
            os.listdir(self.folder)  # a network file system looks again, instead of remembering that nothing was there
            return self._answer(number).read_text(encoding="utf-8") == self.text
        except OSError:
            return False


@contextmanager
def sharing(folder: Path) -> Iterator[Share | None]:
    """A question in `folder`, or in its nearest parent that is there; None where nothing can be written. Nothing is left."""
    exists = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        made = Path(tempfile.mkdtemp(prefix=".launcher-doctor-", dir=exists))
    except OSError:
        yield None
        return
    try:
        share = Share(made, secrets.token_hex(16))
        (made / _HERE).write_text(share.text, encoding="utf-8")
        yield share
    finally:
        shutil.rmtree(made, ignore_errors=True)
