"""Save and leave: how a rank learns that it is asked to, and what its story ends with then. DO.

One rank's word is enough, but nobody may leave alone: what `asked_to_leave` says goes into a collective that the step has
anyway, and all ranks read the same answer there. Imports nothing heavy: the signal is blocked before torch makes its threads.
"""

from __future__ import annotations

import signal
import time

from launcher.rundir.folder import StageDir, write_json
from launcher.rundir.leave import LEAVE


class Left(Exception):
    """A story that ends behind a checkpoint, because the ranks were asked to leave."""

    def __init__(self, *, step: int, world: int):
        super().__init__(f"left after step {step}")
        self.step, self.world = step, world


def hold_back() -> None:
    """Block the signal, also where nobody did before us. Threads and processes that are made from now on inherit that."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {LEAVE})


def asked_to_leave() -> bool:
    """Whether the signal has come, ever. A microsecond."""
    return LEAVE in signal.sigpending()


def say_listening(stage_dir: StageDir) -> None:
    """Rank 0's word that the ranks are at their steps: whoever asks from now on waits for a checkpoint."""
    write_json(stage_dir.listening, {"t": time.time()})
