"""What a node that has come by itself finds of itself before it takes part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import LauncherError
from launcher.hosts.machine.facts import HERE, HostFacts, LeftRun
from launcher.plan.away import coming_machine
from launcher.plan.make import make_plan
from launcher.plan.plan import Plan
from launcher.spec.job import JobSpec
from launcher.spec.load import open_job_text
from launcher.supervise.doctor import check_node
from launcher.supervise.facts import find_shape
from tests.unit.hosts.conftest import WELL

JOB = """
name: job
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
cluster: {backend: kubernetes, nodes: 2, slots: 1, kubernetes: {image: x, claim: runs, cpus: 2, memory_gib: 8}}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64}, steps: 10}
"""
RUN = Path("/runs/job/one")
OWN = replace(WELL, host=HERE)


@pytest.fixture
def planned() -> tuple[JobSpec, Plan]:
    loaded = open_job_text(JOB, file_name="job.yaml", folder=Path("/nowhere"))
    machine = coming_machine(loaded.job.cluster)
    return loaded.job, make_plan(loaded.job, machine=machine, shape=find_shape(loaded.job), places=loaded.places)


def test_a_node_that_is_well_takes_part(planned: tuple[JobSpec, Plan]) -> None:
    assert check_node(*planned, OWN, node=1, folder=RUN) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"free_memory_bytes": 0}, r"^node 1, host memory \[E409\]"),
        ({"packages": {}}, r"^node 1 \[E407\](?s:.)*hint: /opt/venv/bin/python -m pip install torch"),
        ({"inodes_free": 10}, r"^node 1 \[E438\]"),
        ({"unusable": {"/models/x": "is not there"}}, r"^node 1 \[E433\] /models/x is not there"),
    ],
)
def test_what_doctor_refuses_stops_the_node_and_names_it(
    planned: tuple[JobSpec, Plan], changed: dict[str, object], said: str
) -> None:
    with pytest.raises(LauncherError, match=said):
        check_node(*planned, replace(OWN, **changed), node=1, folder=RUN)  # type: ignore[arg-type]


def test_what_doctor_warns_of_is_told(planned: tuple[JobSpec, Plan]) -> None:
    [one] = check_node(*planned, replace(OWN, disk_free_bytes=5), node=1, folder=RUN)
    assert one.problem.text().startswith("node 1 [E438] 5 B are free")


FULL = replace(OWN, free_memory_bytes=0)


@pytest.mark.parametrize(
    ("node", "facts"), [(0, FULL), (1, replace(FULL, left=(LeftRun(token=str(RUN), pids=(7,)),)))], ids=["node 0", "leftovers"]
)
def test_memory_that_an_earlier_attempt_may_hold_is_not_judged(
    planned: tuple[JobSpec, Plan], node: int, facts: HostFacts
) -> None:
    assert check_node(*planned, facts, node=node, folder=RUN) == []


def test_processes_of_other_runs_are_somebodys(planned: tuple[JobSpec, Plan]) -> None:
    left = (LeftRun(token="/runs/other/one", pids=(7,)),)
    assert check_node(*planned, replace(OWN, left=left), node=1, folder=RUN) == []
