"""Our reading of hostfiles and filters against DeepSpeed's own, where DeepSpeed is right."""

from __future__ import annotations

import pytest
from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion

from launcher.spec.hostfile import read_hostfile
from launcher.spec.hosts import filtered
from tests.unit.spec.test_hostfile import SAMPLES
from tests.unit.spec.test_hosts import EXCLUDED, HOSTS, INCLUDED


@pytest.mark.parametrize("name", ["one_node", "two_nodes"])
def test_the_samples_are_read_as_deepspeed_reads_them(name):
    assert dict(fetch_hostfile(str(SAMPLES / name))) == {entry.host: entry.slots for entry in read_hostfile(SAMPLES / name)}


@pytest.mark.parametrize(("include", "exclude"), [*((text, "") for text in INCLUDED), *(("", text) for text in EXCLUDED)])
def test_filters_leave_what_deepspeed_leaves(include, exclude):
    theirs = parse_inclusion_exclusion({host.host: len(host.devices) for host in HOSTS}, include, exclude)
    ours = filtered(HOSTS, include=include or None, exclude=exclude or None)
    assert {host.host: list(host.devices) for host in ours} == dict(theirs)
