"""(what a node says of itself, node 0's own) -> what is not alike. Pure.

The judges are those of hosts over ssh (hosts/checks/likeness.py). There the most common is right, here it is node 0, which
prepared the run and writes what all ranks read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from launcher.errors import Problem
from launcher.hosts.checks.ask import facts_from
from launcher.hosts.checks.likeness import COMPARED, unlike_symptoms
from launcher.hosts.checks.symptom import Symptom, symptom
from launcher.hosts.machine.facts import HERE, HostFacts

_JUDGED = ("E425", "E426", "E434")  # how one logs in there is of no account: nobody does
_OTHER_VERSION = "E425"


def compared(facts: HostFacts) -> HostFacts:
    """The part that is compared, small enough for a card that is written again and again."""
    packages = {name: version for name in COMPARED if (version := facts.version(name)) is not None}
    return replace(facts, host=HERE, packages=packages, code=_of_folders(facts.code), left=(), unusable={})


def without_gpus(facts: HostFacts) -> HostFacts:
    """Of a node whose ranks are processes of the CPU: no driver and no GPU stands against its part."""
    return replace(facts, gpus=(), health=(), driver=None, problems=())


def said_of(facts: HostFacts) -> dict[str, object]:
    """What a card carries of it."""
    return asdict(compared(facts))


def unlike_node_0(said: Mapping[str, object], own: HostFacts, *, where: str) -> list[Symptom]:
    """Of the node that says it; each with both values and what mends it."""
    try:
        facts = replace(facts_from(said), host=HERE)  # as the node itself would type what mends it
    except ValueError as error:
        what = f"its zerolaunch is of another version: {str(error).splitlines()[0]}"
        return [symptom(where, "E420", what, "start all nodes with the same image or environment")]
    found = unlike_symptoms([replace(compared(own), host="node 0"), facts], compared(own))
    return [_placed(one, where) for one in found if one.host == HERE and one.problem.code in _JUDGED]


def _placed(one: Symptom, where: str) -> Symptom:
    hint = one.problem.hint
    if one.problem.code == _OTHER_VERSION:
        hint = f"start all nodes with node 0's image or environment; or there: {hint}"
    problem = Problem(code=one.problem.code, where=where, what=one.problem.what, hint=hint)
    return Symptom(host=where, problem=problem, stops=one.stops)


def _of_folders(code: Mapping[str, str]) -> dict[str, str]:
    """One hash for each folder of the package, and for each file beside them."""
    files: dict[str, dict[str, str]] = {}
    for path, told in code.items():
        files.setdefault(path.partition("/")[0], {})[path] = told
    return {name: hashlib.sha256(json.dumps(inside, sort_keys=True).encode()).hexdigest() for name, inside in files.items()}
