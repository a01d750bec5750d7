"""Facts of all hosts -> the one that is not like the others."""

from __future__ import annotations

from launcher.hosts.checks.likeness import unlike_symptoms
from launcher.hosts.machine.facts import HERE
from launcher.hosts.machine.gpus import GpuFact
from launcher.units import GIB
from tests.unit.hosts.conftest import WELL


def told(found):
    return [(one.host, one.problem.code, one.stops) for one in found]


def packages(**changed):
    return {**WELL.packages, **changed}


def test_hosts_that_are_alike_have_no_symptom(facts):
    assert unlike_symptoms([facts("node1"), facts("node2")], facts(HERE)) == []
    assert unlike_symptoms([], facts(HERE)) == []


def test_most_hosts_are_right_even_against_this_machine(facts):
    other = packages(deepspeed="2.0")
    hosts = [facts("node1"), facts("node2", packages=other), facts("node3"), facts("node4")]
    found = unlike_symptoms(hosts, facts(HERE, packages=other))
    assert told(found) == [("node2", "E425", True), (HERE, "E425", False)]
    assert found[0].problem.what == "deepspeed 2.0, usual is 1.0"
    assert found[0].problem.hint == "ssh node2 /opt/venv/bin/python -m pip install deepspeed==1.0"


def test_where_as_many_have_the_one_as_the_other_this_machine_decides(facts):
    hosts = [facts("node1"), facts("node2", packages=packages(torch="2.0"))]
    assert told(unlike_symptoms(hosts, facts(HERE, packages=packages(torch="2.0")))) == [("node1", "E425", True)]
    assert told(unlike_symptoms(hosts, facts(HERE, packages={}))) == [("node2", "E425", True)]


def test_packages_that_no_rank_trains_with_only_warn_in_one_line(facts):
    many = {f"package{number}": "1" for number in range(9)}
    [found] = unlike_symptoms([facts("node1"), facts("node2"), facts("node3", packages=packages(**many))], facts(HERE))
    assert told([found]) == [("node3", "E425", False)]
    assert "package0 1, usual is none" in found.problem.what
    assert found.problem.what.endswith("and 3 packages more")


def test_a_missing_package_is_no_other_version(facts):
    """It is told by the host alone, as E407."""
    without = {name: version for name, version in WELL.packages.items() if name != "trl"}
    assert unlike_symptoms([facts("node1"), facts("node2", packages=without), facts("node3")], facts(HERE)) == []


def test_the_last_number_of_python_only_warns(facts):
    hosts = [facts("node1"), facts("node2"), facts("node3", python="3.11.9"), facts("node4", python="3.12.1")]
    found = unlike_symptoms(hosts, facts(HERE))
    assert told(found) == [("node3", "E425", False), ("node4", "E425", True)]


def test_the_files_that_differ_are_named(facts):
    changed = facts("node2", code={"units.py": "aa", "errors.py": "cc", "new.py": "dd"})
    [found] = unlike_symptoms([facts("node1"), changed], facts(HERE))
    assert told([found]) == [("node2", "E426", True)]
    assert "launcher/errors.py, launcher/new.py" in found.problem.what


def test_this_machine_is_told_where_it_is_the_odd_one(facts):
    found = unlike_symptoms([facts("node1"), facts("node2")], facts(HERE, code={}))
    assert told(found) == [(HERE, "E426", True)]
    assert told(unlike_symptoms([facts("node1", code={})], facts(HERE))) == [("node1", "E426", True)]


def test_another_user_on_one_host(facts):
    [found] = unlike_symptoms([facts("node1"), facts("node2", user="root"), facts("node3")], facts(HERE, user="root"))
    assert told([found]) == [("node2", "E427", True)]
    assert "User me" in found.problem.hint


def test_other_gpus_warn_and_another_driver_stops_by_its_first_number(facts):
    gpu = GpuFact(number=0, uuid="", name="H100", total_bytes=80 * GIB, free_bytes=80 * GIB, capability=(9, 0))
    hosts = [
        facts("node1", gpus=(gpu,), driver="550.54.15"),
        facts("node2", gpus=(gpu,), driver="550.54.15"),
        facts("node3", gpus=(), driver="550.90.07"),
        facts("node4", gpus=(gpu,), driver="470.1.1"),
    ]
    assert told(unlike_symptoms(hosts, facts(HERE))) == [
        ("node3", "E434", False),
        ("node3", "E425", False),
        ("node4", "E425", True),
    ]
