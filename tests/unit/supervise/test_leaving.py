"""When ranks are waited for that were asked to save and leave, and when nobody waits any more. No process, no clock."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launcher.rundir.leave import SAVE_S
from launcher.supervise.leaving import Demand, why_end
from launcher.supervise.stop import StopFlag


@pytest.mark.parametrize(
    ("requests", "listening", "waited_s", "why"),
    [
        (1, True, 0.0, ""),
        (1, True, SAVE_S, ""),
        (1, True, SAVE_S + 1, "its ranks did not save and leave within 600 s"),
        (2, True, 0.0, "it was asked to stop a second time"),
        (1, False, 0.0, "its ranks were not at their steps yet"),
    ],
)
def test_what_is_waited_for(requests: int, listening: bool, waited_s: float, why: str) -> None:
    assert why_end(requests=requests, listening=listening, waited_s=waited_s) == why


class Ranks:
    """A stage whose ranks can be asked, and how often they were."""

    def __init__(self, folder: Path, *, listen: bool = True) -> None:
        self.stop, self.asked = StopFlag(), 0
        (folder / "listening.json").touch() if listen else None
        self.demand = Demand(self.stop, folder / "listening.json", self.ask)

    def ask(self) -> None:
        self.asked += 1


def test_ranks_are_asked_once_and_a_second_request_ends_them(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path)
    assert not ranks.demand.to_end(0.0)
    assert ranks.asked == 0
    ranks.stop.ask(signal.SIGINT)
    assert [ranks.demand.to_end(now_s) for now_s in (1.0, 2.0, SAVE_S)] == [False, False, False]
    assert ranks.asked == 1
    ranks.stop.ask(signal.SIGINT)
    assert ranks.demand.to_end(3.0)
    assert not ranks.demand.hard  # in order, and only the third kills
    ranks.stop.ask(signal.SIGINT)
    assert ranks.demand.hard


def test_the_limit_counts_from_the_request(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path)
    ranks.stop.ask(signal.SIGUSR1)
    assert not ranks.demand.to_end(10_000.0)
    assert ranks.demand.to_end(10_000.0 + SAVE_S + 1)


def test_ranks_that_still_load_are_ended_at_once_and_a_second_request_kills(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, listen=False)
    ranks.stop.ask(signal.SIGTERM)
    assert ranks.demand.to_end(0.0)
    assert (ranks.asked, ranks.demand.unsaved) == (0, "its ranks were not at their steps yet")
    ranks.stop.ask(signal.SIGTERM)
    assert ranks.demand.hard


def test_what_has_no_steps_is_never_asked() -> None:
    stop = StopFlag()
    demand = Demand(stop, None, lambda: pytest.fail("asked"))
    stop.ask(signal.SIGTERM)
    assert demand.to_end(0.0)
    assert demand.unsaved == ""
