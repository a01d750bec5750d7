"""Every test here needs a machine that can hold a test cluster; `@pytest.mark.needs("nft", …)` names further programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.needs import missing
from tests.cluster.world import Cluster


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture makes hosts."""
    programs = [program for mark in item.iter_markers("needs") for program in mark.args]
    if reason := missing(*programs):
        pytest.skip(reason)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """node1 and node2, fresh: half a second."""
    with Cluster(hosts=2) as cluster:
        yield cluster
