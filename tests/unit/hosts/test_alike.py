"""What a node says of itself, as a card carries it -> what is not alike node 0."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from launcher.hosts.machine.facts import HERE, LeftRun
from launcher.hosts.nodes.alike import said_of, unlike_node_0, without_gpus
from tests.unit.hosts.conftest import WELL

OWN = replace(WELL, host=HERE, code={"units.py": "a", "hosts/alike.py": "b", "hosts/nodes/board.py": "c"}, driver="550.54.15")


def found(**changed):
    """Of a node with other facts, as its card is read."""
    return unlike_node_0(json.loads(json.dumps(said_of(replace(OWN, **changed)))), OWN, where="node 1 (pod-1)")


def test_a_node_that_is_alike_has_no_symptom_whatever_else_it_is():
    left = (LeftRun(token="x", pids=(1,)),)
    assert (
        found(user="somebody else", name="pod-1", free_memory_bytes=1, left=left, packages={**OWN.packages, "numpy": "1"}) == []
    )


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"packages": {**OWN.packages, "torch": "2.0"}}, "E425", "torch 2.0, usual is 1.0"),
        ({"packages": {**OWN.packages, "zerolaunch": "0.0"}}, "E425", "zerolaunch 0.0, usual is 0.1.0"),
        ({"packages": {**OWN.packages, "bitsandbytes": "0.4"}}, "E425", "bitsandbytes 0.4, usual is none"),
        ({"python": "3.12.1"}, "E425", "Python 3.12.1 (/opt/venv/bin/python), usual is 3.11.7"),
        ({"driver": "535.1.2"}, "E425", "NVIDIA driver 535.1.2, usual is 550.54.15"),
        (
            {"code": {**OWN.code, "hosts/nodes/board.py": "d"}},
            "E426",
            "its launcher is another one than usual: launcher/hosts",
        ),
    ],
)
def test_other_software_stops_and_names_the_node_both_values_and_what_mends_it(changed, code, said):
    [one] = found(**changed)
    assert (one.stops, one.problem.code, one.problem.where, one.problem.what) == (True, code, "node 1 (pod-1)", said)
    assert one.problem.hint
    assert "ssh" not in one.problem.hint


def test_what_mends_it_is_node_0s_version_whichever_is_newer():
    [one] = found(packages={**OWN.packages, "deepspeed": "9.0"})
    installs = "/opt/venv/bin/python -m pip install deepspeed==1.0"
    assert one.problem.hint == f"start all nodes with node 0's image or environment; or there: {installs}"


def test_the_last_number_of_a_version_of_python_or_of_a_driver_only_warns():
    assert [(one.problem.code, one.stops) for one in found(python="3.11.8", driver="550.90")] == [("E425", False)] * 2


def test_a_node_that_says_nothing_is_of_another_version():
    [one] = unlike_node_0({}, OWN, where="node 1")
    assert (one.problem.code, one.problem.where, one.stops) == ("E420", "node 1", True)


def test_a_driver_is_of_account_to_ranks_on_gpus_alone():
    other = replace(OWN, driver=None, problems=("the driver does not answer",))
    said = said_of(without_gpus(other))
    assert unlike_node_0(said, without_gpus(OWN), where="node 1") == []
    assert without_gpus(other).problems == ()


def test_a_card_stays_small():
    everything = replace(OWN, packages={f"package-{number}": "1.0" for number in range(1000)})
    assert len(json.dumps(said_of(everything))) < 4000
