"""What launch.py's exit code tells of a death that nobody saw in time."""

from __future__ import annotations

import pytest

from launcher.hosts.machine.ranks import Death, RankTable

UNSEEN, LATER, SEEN = (
    Death(rank=1, seen_s=1.0, wait_status=None),
    Death(rank=2, seen_s=2.0, wait_status=None),
    Death(rank=0, seen_s=0.5, wait_status=256),
)


@pytest.mark.parametrize(
    ("deaths", "exit_code", "told"),
    [
        ([UNSEEN], 247, (1, 9)),
        ([LATER, UNSEEN], 250, (1, 6)),
        ([UNSEEN], 1, None),  # launch.py's own, or a rank's that ended by itself
        ([UNSEEN], 0, None),
        ([SEEN, UNSEEN], 247, None),  # the first death is known, and is the one that the code tells of
        ([], 247, None),
    ],
)
def test_only_the_first_death_is_explained(deaths: list[Death], exit_code: int, told: tuple[int, int] | None) -> None:
    table = RankTable("token", world=3, ended={death.rank: death for death in deaths})
    death = table.explain(exit_code)
    assert (None if death is None else (death.rank, death.signal_number)) == told
    assert death is None or table.ended[death.rank] == death
    assert table.explain(exit_code) is None
