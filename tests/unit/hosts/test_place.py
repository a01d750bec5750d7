"""A node finds its place in the environment of whoever started it."""

from __future__ import annotations

import pytest

from launcher.errors import LauncherError
from launcher.hosts.nodes.place import SOURCES, check_place, place_of

SKYPILOT = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5"}
DSTACK = {"DSTACK_NODE_RANK": "1", "DSTACK_NODES_NUM": "2", "DSTACK_MASTER_NODE_IP": "10.0.0.6"}
TRAINER = {"PET_NODE_RANK": "1", "PET_NNODES": "2", "PET_MASTER_ADDR": "job-node-0-0.job"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "1", "LAUNCHER_NODES": "2", "LAUNCHER_MASTER": "job-node-0-0.job"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "LAUNCHER_MASTER": "node1"}
SLURM = {"SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environ", "told_by", "master"),
    [
        (SKYPILOT, "SkyPilot", "10.0.0.4"),
        (DSTACK, "dstack", "10.0.0.6"),
        (TRAINER, "Kubeflow Trainer", "job-node-0-0.job"),
        (KUBERNETES, "Kubernetes", "job-node-0-0.job"),
        (OPEN_MPI, "Open MPI", "node1"),
        (SLURM, "SLURM", "gpu07"),
    ],
)
def test_each_scheduler_tells_number_count_and_meeting_point(environ: dict[str, str], told_by: str, master: str) -> None:
    place = place_of(environ)
    assert (place.told_by, place.node, place.nodes, place.master) == (told_by, 1, 2, master)


def test_every_scheduler_of_the_table_is_tested() -> None:
    assert {source.name for source in SOURCES} == {
        place_of(environ).told_by for environ in (SKYPILOT, DSTACK, TRAINER, KUBERNETES, OPEN_MPI, SLURM)
    }


@pytest.mark.parametrize(
    ("inner", "outer"),
    [(OPEN_MPI, SLURM), (SKYPILOT, SLURM), (SKYPILOT, KUBERNETES), (DSTACK, KUBERNETES), (TRAINER, KUBERNETES)],
)
def test_who_sits_on_another_one_is_asked_first(inner: dict[str, str], outer: dict[str, str]) -> None:
    """Under mpirun inside an allocation SLURM's variables are those of one daemon, the same for every process."""
    other = {**outer, "SLURM_NODEID": "0"} if "SLURM_NODEID" in outer else outer
    assert place_of({**other, **inner}) == place_of(inner)


def problem(environ: dict[str, str]) -> str:
    with pytest.raises(LauncherError) as caught:
        place_of(environ)
    [found] = caught.value.problems
    assert found.code == "E440"
    assert found.hint
    return f"{found.where} {found.what}".strip()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "nobody tells which node this is"),
        ({"JOB_COMPLETION_INDEX": "1"}, "LAUNCHER_NODES is not set"),
        ({**KUBERNETES, "LAUNCHER_MASTER": ""}, "LAUNCHER_MASTER is not set"),
        (
            {**KUBERNETES, "LAUNCHER_MASTER": "-oX=id"},
            "LAUNCHER_MASTER is '-oX=id', not the name of a host",
        ),
        ({**KUBERNETES, "JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX 2 is not below 2"),
        ({**KUBERNETES, "JOB_COMPLETION_INDEX": "-1"}, "JOB_COMPLETION_INDEX is '-1', not a number"),
        ({**KUBERNETES, "LAUNCHER_NODES": "٣"}, "LAUNCHER_NODES is '٣', not a number"),
        ({**KUBERNETES, "LAUNCHER_NODES": "9" * 40}, "LAUNCHER_NODES is '999"),
        ({**SLURM, "SLURM_STEP_NODELIST": "gpu[7-"}, "SLURM_STEP_NODELIST 'gpu[7-' is no list of hosts"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS 4 processes were started on 2 nodes"),
        ({**SKYPILOT, "CROSS_RANK": "0"}, "CROSS_RANK is set: DeepSpeed's launch.py has started this process as a rank"),
        ({**SLURM, "TORCHELASTIC_RUN_ID": "x"}, "TORCHELASTIC_RUN_ID is set: torchrun has started this process as a rank"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(environ: dict[str, str], said: str) -> None:
    assert said in problem(environ)


def test_another_number_of_nodes_than_planned_is_refused() -> None:
    check_place(place_of(KUBERNETES), planned=2)
    with pytest.raises(LauncherError) as caught:
        check_place(place_of(KUBERNETES), planned=4)
    assert caught.value.text().startswith("node 1 [E441] Kubernetes has started 2 nodes, the plan is for 4")
    assert caught.value.exit_code == 4
