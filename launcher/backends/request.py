"""LaunchRequest: one command as text, complete before anything is started. Pure: printing it is what --dry-run does."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

# Every process of a run carries it in its environment, with the run folder's path: they are found by it, never by name.
TOKEN = "LAUNCHER_RUN"
# In manifests for Kubernetes, where a pod is told its own number and nothing of the others: how many, and node 0's name.
NODES, MASTER = "LAUNCHER_NODES", "LAUNCHER_MASTER"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """What starts one stage (or prepare): argv, and the environment that is added to the caller's."""

    stage: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    world: int
    grace_s: float = 5.0  # that it needs to end in order, once it is told to

    def shell_text(self) -> str:
        """One line for a POSIX shell that does the same without this program."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.env]
        return " ".join(["env", *assignments, shlex.join(self.argv)] if assignments else [shlex.join(self.argv)])
