"""Who sends when, as ranks that only meet do it: nobody sends and receives at once, and every host has its turn."""

from __future__ import annotations

import pytest

from launcher.stages.meet import _phase, _phases


@pytest.mark.parametrize("hosts", range(2, 12))
def test_every_host_sends_once_and_never_while_it_receives(hosts):
    phases = [_phase(host, hosts) for host in range(hosts)]
    assert set(phases) <= set(range(_phases(hosts)))
    assert all(phases[host] != phases[host - 1] for host in range(hosts))


def test_one_host_sends_to_nobody():
    assert _phases(1) == 0
