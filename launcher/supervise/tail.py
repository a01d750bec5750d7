"""What another program of ours writes into its log, told on stderr as it comes. DO."""

from __future__ import annotations

import codecs
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import printable

MOST_KEPT = 64 * 2**10  # characters of the talk


@dataclass(slots=True)
class Tail:
    """What is appended to a log from now on."""

    path: Path
    at: int
    last: str = ""  # of what was told
    _decode: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace"))

    def tell(self) -> None:
        """A terminal that was closed takes no more, and ends nothing."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.at)
                text = file.read()
        except OSError:
            return
        self.at += len(text)
        told = printable(self._decode.decode(text))
        self.last = (self.last + told)[-MOST_KEPT:]
        if told and sys.stderr is not None:
            with suppress(OSError):
                sys.stderr.write(told)
                sys.stderr.flush()


def tail_of(path: Path) -> Tail:
    """From its end, as it is now; a log that is not there yet from its beginning."""
    return Tail(path, path.stat().st_size if path.exists() else 0)
