"""The door to programs that are spoken with: one started program, lines in, lines out, its stderr kept for the case. DO."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.backends.request import TOKEN

MOST_WORDS = 16 * 2**10  # bytes of stderr that are kept, from its end
END_S = 1.0


@dataclass(slots=True)
class Pipe:
    """A program in a session of its own, so that a terminal's Ctrl-C reaches only us."""

    process: asyncio.subprocess.Process
    _words: bytearray
    _listening: asyncio.Task[None]

    def write(self, text: bytes) -> None:
        """Buffered; a program that does not read loses it with the connection."""
        assert self.process.stdin is not None
        if not self.process.stdin.is_closing():
            self.process.stdin.write(text)

    async def read_line(self) -> bytes:
        """Empty at the end. OSError where the line is too long."""
        assert self.process.stdout is not None
        try:
            return await self.process.stdout.readline()
        except ValueError as error:
            raise OSError(str(error)) from None

    async def drain(self) -> None:
        """Until the program has read most of what was written. OSError where it has gone."""
        assert self.process.stdin is not None
        await self.process.stdin.drain()

    async def read(self, most: int) -> bytes:
        """What there is, at most so many bytes; empty at the end."""
        assert self.process.stdout is not None
        return await self.process.stdout.read(most)

    async def last_words(self) -> str:
        """What the program said on stderr, and how it ended."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._listening), END_S)
        return self._words.decode("utf-8", errors="replace")

    async def close(self) -> None:
        """End it. Nothing of it is left."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            if self.process.returncode is None:
                self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), END_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        with contextlib.suppress(TimeoutError, OSError, ValueError):  # to their ends, which closes them
            await asyncio.wait_for(asyncio.gather(self._rest(), asyncio.shield(self._listening)), END_S)
        self._listening.cancel()

    async def _rest(self) -> None:
        assert self.process.stdout is not None
        while await self.process.stdout.read(2**16):
            pass


async def open_pipe(argv: Sequence[str], *, longest_line: int) -> Pipe:
    """OSError as exec raises it."""
    pipe = asyncio.subprocess.PIPE
    env = {name: value for name, value in os.environ.items() if name != TOKEN}  # our end ends it, not that of the run
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=pipe, stdout=pipe, stderr=pipe, limit=longest_line, start_new_session=True, env=env
    )
    words = bytearray()
    return Pipe(process, words, asyncio.create_task(_listen(process, words)))


async def _listen(process: asyncio.subprocess.Process, words: bytearray) -> None:
    assert process.stderr is not None
    while text := await process.stderr.read(4096):
        words += text
        del words[:-MOST_WORDS]
