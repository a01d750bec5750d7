"""What hosts heard of each other -> who is to blame, once and not once a pair; and clocks."""

from __future__ import annotations

import pytest

from launcher.hosts.checks.mesh import MOST_IN_FULL, knocks
from launcher.hosts.checks.needs import Needs
from launcher.hosts.checks.ways import clock_symptoms, way_symptoms
from launcher.hosts.machine.facts import HERE, Clock, Examined, Odd
from tests.unit.hosts.conftest import door


def silent(number: int) -> Odd:
    return Odd(host=f"node{number}", by_address="does not answer", resolved=f"10.0.0.{number}", by_name="")


def named(number: int, resolved: str | None, by_name: str) -> Odd:
    return Odd(host=f"node{number}", by_address="", resolved=resolved, by_name=by_name)


def heard(count: int, odd: dict[int, tuple[Odd, ...]]) -> Examined:
    hosts = [f"node{number}" for number in range(1, count + 1)]
    return Examined(
        doors={f"node{number}": door(number) for number in range(1, count + 1)},
        knocks=knocks(hosts),
        odd={host: odd.get(number, ()) for number, host in enumerate(hosts, start=1)},
    )


def told(found):
    return [(one.host, one.problem.code, one.stops, one.problem.what) for one in found]


def test_hosts_that_reach_each_other_have_no_symptom():
    assert way_symptoms(heard(3, {}), Needs()) == []


def test_a_host_that_nobody_reaches_is_told_once():
    found = way_symptoms(heard(4, {1: (silent(2),), 3: (silent(2),), 4: (silent(2),)}), Needs())
    what = "is not reached by node1, node3, node4: 10.0.0.2 port 20002 (eth0) does not answer"
    assert told(found) == [("node2", "E430", True, what)]


def test_a_host_that_reaches_nobody_is_told_once():
    found = way_symptoms(heard(4, {2: (silent(1), silent(3), silent(4))}), Needs())
    what = "does not reach any other host: 10.0.0.1 port 20001 (eth0) does not answer"
    assert told(found) == [("node2", "E430", True, what)]


def test_one_pair_is_told_of_the_host_that_knocked():
    found = way_symptoms(heard(4, {2: (silent(3),)}), Needs())
    assert told(found) == [("node2", "E430", True, "does not reach node3: 10.0.0.3 port 20003 (eth0) does not answer")]


def test_names_that_lead_elsewhere():
    odd = (named(2, "127.0.1.1", "connection refused"), named(3, "10.0.0.4", "word4"), named(4, "10.9.9.9", "does not answer"))
    found = way_symptoms(heard(4, {1: odd}), Needs())
    assert told(found) == [
        ("node1", "E431", True, "there the name node2 leads to 127.0.1.1, which is node1 itself"),
        ("node1", "E431", True, "there the name node3 leads to 10.0.0.4, which is node4"),
        ("node1", "E431", True, "there the name node4 leads to 10.9.9.9, where that host is not met: does not answer"),
    ]


def test_a_name_that_a_host_does_not_know_only_warns():
    """The ranks meet at an address."""
    found = way_symptoms(heard(3, {1: (named(2, None, ""), named(3, None, ""))}), Needs())
    assert told(found) == [("node1", "E431", False, "does not know the name of node2, node3")]


@pytest.mark.parametrize("address", ["127.0.1.1", "::1", None])
def test_an_own_name_that_no_other_host_can_use(facts, address):
    found = heard(2, {})
    found.facts = {"node1": facts("node1"), "node2": facts("node2", own_address=address)}
    [one] = way_symptoms(found, Needs())
    assert (one.host, one.problem.code, one.stops) == ("node2", "E431", True)
    assert "`GLOO_SOCKET_IFNAME: eth0`" in one.problem.hint
    assert way_symptoms(found, Needs(own_interface=True)) == []


def second_network(facts, odd: dict[int, tuple[Odd, ...]]) -> Examined:
    """node2's own name leads to eth1; the doors are those of eth0."""
    found = heard(4, odd)
    found.facts = {f"node{number}": facts(f"node{number}", own_address=f"10.0.0.{number}") for number in (1, 3, 4)}
    found.facts["node2"] = facts("node2", own_address="172.17.0.1", own_card="eth1")
    return found


def unmet(by_own: str, *, by_address: str = "") -> tuple[Odd, ...]:
    return (Odd(host="node2", by_address=by_address, resolved="10.0.0.2", by_name="", by_own=by_own),)


@pytest.mark.parametrize(
    ("said", "heard_there"),
    [("connection refused", "connection refused"), ("word1", "another host answers"), ("\x16\x03", "another host answers")],
)
def test_an_own_name_that_leads_where_the_others_do_not_reach_the_host(facts, said, heard_there):
    found = second_network(facts, {1: unmet(said), 3: unmet(said)})
    what = f"its own name node2 leads to 172.17.0.1 (eth1), where it is not reached by node1, node3: {heard_there}"
    assert told(way_symptoms(found, Needs())) == [("node2", "E431", True, what)]
    assert way_symptoms(found, Needs(own_interface=True)) == []


def test_an_own_name_that_leads_to_another_card_where_the_others_reach_the_host_only_warns(facts):
    found = second_network(facts, {})
    [one] = way_symptoms(found, Needs())
    what = (
        "its own name node2 leads to 172.17.0.1 (eth1), over which ranks use gloo; the other hosts meet it at 10.0.0.2 (eth0)"
    )
    assert told([one]) == [("node2", "E431", False, what)]
    assert "`GLOO_SOCKET_IFNAME: eth0`" in one.problem.hint


def test_who_does_not_reach_a_host_at_all_says_nothing_of_its_own_name(facts):
    lost = unmet("does not answer", by_address="does not answer")
    found = second_network(facts, {1: lost, 3: lost, 4: lost})
    found.facts["node2"] = facts("node2", own_address="172.17.0.1", own_card=None)
    assert [(one.host, one.problem.code) for one in way_symptoms(found, Needs())] == [("node2", "E430")]


def clocks(*ahead_s: float, within_s: float = 0.01) -> dict[str, Clock]:
    return {f"node{number}": Clock(ahead_s=ahead, within_s=within_s) for number, ahead in enumerate(ahead_s, start=1)}


@pytest.mark.parametrize(
    ("ahead_s", "expected"),
    [
        ((0.3, -0.5), []),
        ((0.0, 2.0), [("node2", "E428", False, "its clock is 2.0 s ahead")]),
        ((0.0, -20.0), [("node2", "E428", True, "its clock is 20.0 s behind")]),
        ((30.0, 30.0, 30.0), [(HERE, "E428", True, "its clock is 30.0 s behind")]),
        ((), []),
    ],
)
def test_a_clock_is_compared_with_the_middle_of_all(ahead_s, expected):
    assert told(clock_symptoms(clocks(*ahead_s))) == expected


def test_a_clock_is_not_blamed_for_a_slow_answer():
    assert clock_symptoms(clocks(0.0, 3.0, within_s=2.5)) == []


def test_few_hosts_knock_at_every_door_and_many_at_some():
    few = knocks([f"n{number}" for number in range(MOST_IN_FULL)])
    assert all(len(doors) == MOST_IN_FULL - 1 for doors in few.values())
    many = knocks([f"n{number}" for number in range(1000)])
    assert many["n500"] == ("n0", "n501", "n531")
    assert {door for doors in many.values() for door in doors} == set(many)
    assert all(host not in doors for host, doors in many.items())
    assert knocks(["alone"]) == {"alone": ()}
