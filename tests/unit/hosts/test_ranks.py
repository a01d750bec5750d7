"""What launch.py's exit code tells of a death that nobody saw in time."""

from __future__ import annotations

import pytest

from launcher.hosts.machine.ranks import Death, RankTable

UNSEEN, LATER, SEEN = (
    Death(rank=1, seen_s=1.0, wait_status=None),
    Death(rank=2, seen_s=2.0, wait_status=None),
    Death(rank=0, seen_s=0.5, wait_status=256),
)
BESIDE = Death(rank=0, seen_s=1.0, wait_status=None)  # gone at the same look as UNSEEN
TERMED = Death(rank=0, seen_s=1.0, wait_status=15)
ENDED = Death(rank=0, seen_s=0.5, wait_status=0)


@pytest.mark.parametrize(
    ("deaths", "exit_code", "told"),
    [
        ([UNSEEN], 247, (1, 9)),
        ([LATER, UNSEEN], 250, (1, 6)),
        ([UNSEEN], 1, None),  # launch.py's own, or a rank's that ended by itself
        ([UNSEEN], 0, None),
        ([SEEN, UNSEEN], 247, None),  # the first death is known, and is the one that the code tells of
        ([], 247, None),
        ([BESIDE, UNSEEN], 247, None),  # which of the two launch.py ended after the other, nobody can tell
        ([UNSEEN, BESIDE, LATER], 247, None),
        ([TERMED, UNSEEN], 247, (1, 9)),  # launch.py ended rank 0 after rank 1
        ([ENDED, UNSEEN], 247, (1, 9)),  # rank 0 had finished
        ([SEEN, BESIDE, UNSEEN], 247, None),
    ],
)
def test_only_the_first_death_is_explained(deaths: list[Death], exit_code: int, told: tuple[int, int] | None) -> None:
    table = RankTable("token", world=3, ended={death.rank: death for death in deaths})
    death = table.explain(exit_code)
    assert (None if death is None else (death.rank, death.signal_number)) == told
    assert death is None or table.ended[death.rank] == death
    assert table.explain(exit_code) is None


def test_a_rank_that_had_finished_is_not_the_first_death() -> None:
    """Nobody saw how it ended, but its marker is there."""
    gone_early = Death(rank=0, seen_s=0.5, wait_status=None)
    table = RankTable("token", world=2, ended={0: gone_early, 1: UNSEEN})
    assert table.explain(247, finished={0}) == Death(rank=1, seen_s=1.0, wait_status=9)
    assert table.ended[0] == gone_early
    assert RankTable("token", world=2, ended={0: gone_early}).explain(247, finished={0}) is None
