"""Where ranks can meet: a port that is free, an address that the others reach."""

from __future__ import annotations

import os
import socket

import pytest

from launcher.errors import LauncherError
from launcher.hosts.machine import ports


def test_a_free_port_can_be_bound_and_a_taken_one_is_not_given(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST_PORT", port)
        monkeypatch.setattr(ports, "LAST_PORT", port + 1)
        monkeypatch.setattr(ports, "PORT_TRIES", 1)
        with pytest.raises(LauncherError, match="E406"):
            ports.free_port()
    assert ports.free_port() == port


@pytest.mark.parametrize("address", [ports.LOOPBACK, ports.EVERY_CARD, ports.ANYWHERE])
def test_a_port_that_a_job_names_is_refused_with_who_listens_on_it(address):
    with ports.bind_free_port(address) as held:
        port = held.getsockname()[1]
        held.listen()
        with pytest.raises(LauncherError, match=rf"E406.* by process {os.getpid()} \(.+\)\n  hint: end what holds it"):
            ports.check_port(port)


def test_a_port_that_a_stage_has_just_left_is_free():
    """The end that closes first keeps the connection in TIME_WAIT. PyTorch's socket allows its address to be taken again."""
    with socket.create_server((ports.LOOPBACK, 0)) as held:
        port = held.getsockname()[1]
        with socket.create_connection((ports.LOOPBACK, port)) as there:
            held.accept()[0].close()
            assert there.recv(1) == b""
    ports.check_port(port)


def test_the_address_is_that_of_the_way_to_the_first_host_that_is_known(monkeypatch):
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert ports.address_towards(["no-such-host.invalid", "127.0.0.2"]) == "127.0.0.1"


def test_without_a_known_host_it_is_where_the_ssh_client_came_to(monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 50022 10.0.0.1 22")
    assert ports.address_towards([]) == "10.0.0.1"
    monkeypatch.delenv("SSH_CONNECTION")
    assert ports.address_towards([]) == "127.0.0.1"
