"""The same question to every host at once. DO."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.backends.pipes import open_pipe
from launcher.errors import LauncherError, Problem
from launcher.hosts.failures import problem_of_connection
from launcher.hosts.look import HostFacts, facts_from
from launcher.hosts.wire import MAX_LINE, BadLine, line, parse

ANSWER_S = 60.0  # the import of a cold Python on a slow shared folder
MOST_AT_ONCE = 64  # each is an ssh client


def look_at(hosts: Mapping[str, Sequence[str]], *, folder: Path) -> dict[str, HostFacts | Problem]:
    """Facts of every host, or the problem that stands in their place. `hosts`: name -> what starts an agent there."""
    questions = {host: (argv, line({"do": "look", "host": host, "folder": str(folder)})) for host, argv in hosts.items()}
    return {host: _facts(host, answer) for host, answer in asyncio.run(_ask_all(questions)).items()}


def facts_of_all(hosts: Mapping[str, Sequence[str]], *, folder: Path) -> list[HostFacts]:
    """LauncherError (E417-E420) with the problem of every host that does not answer."""
    found = look_at(hosts, folder=folder).values()
    problems = [one for one in found if isinstance(one, Problem)]
    if problems:
        raise LauncherError(problems)
    return [one for one in found if isinstance(one, HostFacts)]


def _facts(host: str, answer: Mapping[str, object] | str) -> HostFacts | Problem:
    if isinstance(answer, str):
        return problem_of_connection(host, answer)
    try:
        return facts_from(answer)
    except ValueError as error:
        what = f"its zerolaunch is of another version: {str(error).splitlines()[0]}"
        return Problem(code="E420", where=host, what=what, hint="install the same version on every host")


async def _ask_all(questions: Mapping[str, tuple[Sequence[str], bytes]]) -> dict[str, dict[str, object] | str]:
    gate = asyncio.Semaphore(MOST_AT_ONCE)
    answers = await asyncio.gather(*(_ask(argv, question, gate) for argv, question in questions.values()))
    return dict(zip(questions, answers, strict=True))


async def _ask(argv: Sequence[str], question: bytes, gate: asyncio.Semaphore) -> dict[str, object] | str:
    """The answer, or what was said instead of it."""
    async with gate:
        pipe = await open_pipe(argv, longest_line=MAX_LINE)
        try:
            pipe.write(question)
            text = await asyncio.wait_for(pipe.read_line(), ANSWER_S)
            if not text:
                return await pipe.last_words()
            answer = parse(text)
            return str(answer.get("what", "")) if answer.get("kind") == "refused" else answer
        except TimeoutError:
            return f"not responding for {ANSWER_S:.0f} s"
        except (OSError, BadLine) as error:
            return await pipe.last_words() or str(error)
        finally:
            await pipe.close()
