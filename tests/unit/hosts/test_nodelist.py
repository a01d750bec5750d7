"""SLURM's short lists, as scontrol writes them, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.hosts.nodes.nodelist import MOST_HOSTS, expand_nodelist


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("a,b", ["a", "b"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("rack[1-2]n[3,5]", ["rack1n3", "rack1n5", "rack2n3", "rack2n5"]),
        ("n[2]x-y.cluster.local", ["n2x-y.cluster.local"]),
        ("n[1-1]", ["n1"]),
    ],
)
def test_a_list_is_expanded_in_its_order(text: str, names: list[str]) -> None:
    assert expand_nodelist(text) == names


@pytest.mark.parametrize("text", ["", ",", "a,", ",a", "n[1-", "n]1[", "n[]", "n[3-1]", "n[a-b]", "n[1--2]", "n[,]", "[[1]]"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no (list|range) of hosts"):
        expand_nodelist(text)


@pytest.mark.parametrize("text", ["n[0-999999999]", f"n[1-{MOST_HOSTS}],m", "n[1-999]m[1-999]"])
def test_more_hosts_than_there_can_be_are_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="names more than 100,000 hosts"):
        expand_nodelist(text)


@given(st.integers(0, 500), st.integers(0, 300), st.integers(1, 5))
def test_a_range_holds_every_number_as_wide_as_its_first(first: int, more: int, width: int) -> None:
    names = expand_nodelist(f"n[{first:0{width}d}-{first + more}]")
    assert [int(name[1:]) for name in names] == list(range(first, first + more + 1))
    assert all(len(name[1:]) >= len(f"{first:0{width}d}") for name in names)
