"""One host as the controller sees it: a connection that is made again when it breaks, until the host's lease is over. DO."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from launcher.backends.pipes import Pipe, open_pipe
from launcher.errors import LauncherError
from launcher.hosts.connection.failures import problem_of_connection, problem_of_same_machine
from launcher.hosts.connection.order import Order, order_line
from launcher.hosts.connection.wire import BEAT_S, MAX_LINE, BadLine, line, parse

FIRST_WORD_S = 60.0  # a cold Python on a slow shared folder
SILENT_S = 3 * BEAT_S  # the host answers each beat: one that is quiet for so long is not there
PAUSE_S, LONGEST_PAUSE_S = 0.25, 4.0
FINAL = frozenset(("E418", "E419", "E420"))  # what no second try mends


class Broken(Exception):
    """The connection ended; what ssh or the host said last."""


@dataclass(slots=True)
class Link:
    """The way to one host. `argv` starts an agent there and speaks with it on stdin and stdout."""

    argv: Sequence[str]
    order: Order
    seen: int = 0  # number of the last message
    heard_s: float | None = None  # when anything was last heard; None: never
    _pipe: Pipe | None = None
    _said: list[Mapping[str, object]] = field(default_factory=list)  # what must reach the host, also over a new connection

    @property
    def host(self) -> str:
        return self.order.host

    def say(self, message: Mapping[str, object]) -> None:
        """Go, leave or stop: said now, and again over every new connection. The host takes each once."""
        self._said.append(message)
        if self._pipe is not None:
            self._pipe.write(line(message))

    async def messages(self) -> AsyncGenerator[dict[str, object], None]:
        """What the host tells, each message once, with `down` and `up` between them; the last one is `ended`.

        LauncherError (E417-E420) where the host was not reached at all, or is lost: silent for longer than its lease, so that
        its ranks are ended by now, whatever became of it. E431 where another host of the run is the same machine.
        """
        pause_s, down = PAUSE_S, False
        while True:
            try:
                async with contextlib.aclosing(self._connection()) as connection:
                    async for message in connection:
                        if down:
                            pause_s, down = PAUSE_S, False
                            yield {"kind": "up"}
                        number = message.get("n")
                        if not isinstance(number, int) or number <= self.seen:
                            continue
                        self.seen = number
                        yield message
                        if message.get("kind") == "ended":
                            await self._last_word()
                            return
            except Broken as broken:
                problem = problem_of_connection(self.host, str(broken))
            if self.heard_s is None or problem.code in FINAL or time.monotonic() - self.heard_s > self.order.lease_s + SILENT_S:
                raise LauncherError(problem)
            if not down:
                down = True
                yield {"kind": "down", "what": problem.what}
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _connection(self) -> AsyncGenerator[dict[str, object], None]:
        """Messages over one connection. Broken at its end, with what was said on stderr."""
        pipe = self._pipe = await open_pipe(self.argv, longest_line=MAX_LINE)
        beating = asyncio.create_task(self._beat(pipe))
        wait_s = FIRST_WORD_S
        try:
            for one in (order_line(replace(self.order, seen=self.seen)), line({"beat": self.seen}), *map(line, self._said)):
                pipe.write(one)
            while text := await asyncio.wait_for(pipe.read_line(), wait_s):
                message = parse(text)
                if message.get("kind") == "refused" and "same_as" in message:
                    raise LauncherError(problem_of_same_machine(self.host, str(message["same_as"])))
                if message.get("kind") == "refused":
                    raise Broken(str(message.get("what", "")))
                self.heard_s, wait_s = time.monotonic(), SILENT_S
                yield message
            raise Broken(await pipe.last_words())
        except TimeoutError:
            raise Broken(f"not responding for {wait_s:.0f} s") from None
        except BadLine as error:
            raise Broken(f"an unexpected answer: {error}") from None
        except OSError as error:
            raise Broken(await pipe.last_words() or str(error)) from None
        finally:
            beating.cancel()
            self._pipe = None
            await pipe.close()

    async def _beat(self, pipe: Pipe) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            pipe.write(line({"beat": self.seen}))

    async def _last_word(self) -> None:
        """That the end was seen, so that the keeper goes; without it, it waits for its lease."""
        if self._pipe is not None:
            self._pipe.write(line({"beat": self.seen}))
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(self._pipe.read_line(), BEAT_S)
