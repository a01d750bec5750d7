"""The hosts of a job: what the filters leave, as DeepSpeed reads them where it is right."""

from __future__ import annotations

import pytest

from launcher.errors import LauncherError
from launcher.spec.cluster import ClusterSpec, findings
from launcher.spec.hosts import ClusterHost, filtered, hosts_of

HOSTS = [
    ClusterHost("w0", (0, 1, 2, 3), "hosts:1:1"),
    ClusterHost("w1", (0, 1, 2, 3), "hosts:2:1"),
    ClusterHost("w2", (0,), ""),
]
# filter -> what is left, the same in DeepSpeed (tests/stages/test_hostfiles.py)
INCLUDED = {
    "w1": {"w1": [0, 1, 2, 3]},
    "w0@w2": {"w0": [0, 1, 2, 3], "w2": [0]},
    "w2@w0:2,0": {"w0": [0, 2], "w2": [0]},
    "w1:1@w1:3": {"w1": [1, 3]},
    "w1:1,1": {"w1": [1]},
}
EXCLUDED = {
    "w1": {"w0": [0, 1, 2, 3], "w2": [0]},
    "w0:0,3": {"w0": [1, 2], "w1": [0, 1, 2, 3], "w2": [0]},
    "w2:0@w0": {"w1": [0, 1, 2, 3]},
}


def left(**filters) -> dict[str, list[int]]:
    hosts = filtered(HOSTS, include=filters.get("include"), exclude=filters.get("exclude"))
    return {host.host: list(host.devices) for host in hosts}


@pytest.mark.parametrize("text", INCLUDED)
def test_include_leaves_what_it_names(text):
    assert left(include=text) == INCLUDED[text]


@pytest.mark.parametrize("text", EXCLUDED)
def test_exclude_leaves_the_rest(text):
    assert left(exclude=text) == EXCLUDED[text]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("w3", "none of the hosts"),
        ("w0:9", "no slot 9"),
        ("w0:", "no list of slots"),
        ("w0:a", "no list of slots"),
        ("w0:-1", "no list of slots"),
        ("", "none of the hosts"),
        ("w0@@w1", "none of the hosts"),
        ("-oProxyCommand=id", "none of the hosts"),
    ],
)
def test_a_filter_that_names_nothing_is_refused(text, what):
    with pytest.raises(LauncherError, match=what):
        left(include=text or "@")


def test_a_filter_that_leaves_nothing_is_refused():
    with pytest.raises(LauncherError, match="leaves no slot"):
        left(exclude="w0@w1@w2")


def test_hosts_may_stand_in_the_job():
    cluster = ClusterSpec.model_validate_json('{"backend": "ssh", "hosts": ["a", "b"], "slots": 2, "include": "b:1"}')
    assert [(host.host, host.devices) for host in hosts_of(cluster)] == [("b", (1,))]


@pytest.mark.parametrize("backend", ["ssh", "mpi"])
@pytest.mark.parametrize(("named", "by"), [('"hosts": ["a", "b"]', "hosts"), ('"hostfile": "x"', "hostfile")])
def test_a_number_of_nodes_beside_named_hosts_is_refused(backend, named, by):
    cluster = ClusterSpec.model_validate_json(f'{{"backend": "{backend}", {named}, "nodes": 2}}')
    [finding] = findings(cluster)
    assert (finding.code, finding.path, finding.also) == ("E115", ("cluster", "nodes"), (("cluster", by),))
    assert finding.what == f"has no effect: {by} says which hosts there are"


def test_a_number_of_nodes_alone_plans_away_from_hosts():
    assert not list(findings(ClusterSpec.model_validate_json('{"backend": "ssh", "gpu": "h100-80gb", "slots": 8, "nodes": 2}')))
