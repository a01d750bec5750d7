"""A run is told to stop while ranks train -> wait for them to save and leave, or end them now, and why.

`why_end` is the policy, and pure; Demand is what becomes of one demand in one attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.rundir.leave import SAVE_S
from launcher.supervise.stop import StopFlag


def why_end(*, requests: int, listening: bool, waited_s: float) -> str:
    """Why the ranks are ended without having saved; empty: they are waited for. `waited_s`: since they were asked to leave."""
    if not listening:
        return "its ranks were not at their steps yet"
    if requests > 1:
        return "it was asked to stop a second time"
    if waited_s > SAVE_S:
        return f"its ranks did not save and leave within {SAVE_S:.0f} s"
    return ""


@dataclass(slots=True)
class Demand:
    """The demand to stop, as one attempt meets it."""

    stop: StopFlag
    listening: Path | None  # the ranks' word that they can be asked to leave; None: they never can, as prepare
    ask: Callable[[], None]  # asks them
    asked_s: float | None = None  # when they were
    unsaved: str = ""  # why they are ended instead
    _requests: int = 1  # that it took to end the attempt

    def to_end(self, now_s: float) -> bool:
        """Whether the attempt is to be ended now. The ranks are asked to leave the first time that they may be waited for."""
        if not self.stop.asked or self._may_save(now_s):
            return False
        self._requests = self.stop.count
        return True

    def _may_save(self, now_s: float) -> bool:
        if self.listening is None:
            return False
        waited_s = 0.0 if self.asked_s is None else now_s - self.asked_s
        self.unsaved = why_end(requests=self.stop.count, listening=self.listening.exists(), waited_s=waited_s)
        if not self.unsaved and self.asked_s is None:
            self.asked_s = now_s
            self.ask()
        return not self.unsaved

    @property
    def hard(self) -> bool:
        """The end itself is to be waited for no longer: asked once more than it took to come to it."""
        return self.stop.count > self._requests

    def wait(self, seconds: float) -> None:
        """Until the next look; not at all where the demand came since the last one."""
        if self.asked_s is None:
            self.stop.wait(seconds)
        else:
            time.sleep(seconds)
