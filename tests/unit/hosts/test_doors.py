"""Doors on this machine: who answers, who does not, and what a name leads to."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from launcher.hosts.checks import doors
from launcher.hosts.checks.doors import listen, reach
from launcher.hosts.machine.facts import Door, Odd
from launcher.hosts.machine.ports import free_port


@pytest.fixture
def here() -> Door:
    """A door of this machine, under a name that leads to it."""
    opened = listen("a word", [])
    return Door(host="localhost", word="a word", address="127.0.0.1", port=opened.port)


def test_a_door_that_tells_its_word_is_not_odd(here):
    assert reach([here], knock={"localhost"}) == []


def test_who_tells_another_word_is_another_host(here):
    stranger = Door(host="localhost", word="another", address="127.0.0.1", port=here.port)
    assert reach([stranger], knock={"localhost"}) == [
        Odd(host="localhost", by_address="a word", resolved="127.0.0.1", by_name="")
    ]


def test_a_closed_door_is_refused(here):
    closed = Door(host="localhost", word="a word", address="127.0.0.1", port=free_port())
    [odd] = reach([closed], knock={"localhost"})
    assert odd.by_address == "connection refused"
    assert reach([closed], knock=set()) == []


def test_one_that_listens_and_says_nothing_does_not_hold_us_up(here, monkeypatch):
    monkeypatch.setattr(doors, "REACH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = Door(host="localhost", word="a word", address="127.0.0.1", port=silent.getsockname()[1])
        [odd] = reach([mute], knock={"localhost"})
    assert odd.by_address == "does not answer"


def test_a_name_that_leads_elsewhere_is_tried_there(here, monkeypatch):
    monkeypatch.setattr(doors, "_resolve", lambda names: {"node2": "127.0.0.1", "node3": None})
    far = Door(host="node2", word="another", address="127.0.0.2", port=here.port)
    unknown = Door(host="node3", word="a word", address="127.0.0.1", port=here.port)
    assert reach([far, unknown], knock={"node3"}) == [
        Odd(host="node2", by_address="", resolved="127.0.0.1", by_name="a word"),
        Odd(host="node3", by_address="", resolved=None, by_name=""),
    ]


def test_where_a_hosts_own_name_leads_is_tried_too(here, monkeypatch):
    monkeypatch.setattr(doors, "is_loopback", lambda address: address == "127.0.0.9")
    met = replace(here, own="127.0.0.2")
    assert reach([met], knock={"localhost"}) == []
    [odd] = reach([replace(met, address="127.0.0.3", word="another")], knock={"localhost"})
    assert odd.by_own == "a word"
    assert reach([replace(met, port=free_port(), own="127.0.0.9")], knock=set()) == []  # it leads the host to itself
