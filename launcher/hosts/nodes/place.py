"""Environment of a process -> this node's place: its number, how many there are, where they meet. Pure, one table.

Whoever starts the same program on every node tells each its place in variables of its own: Kubernetes, SkyPilot, dstack, SLURM,
Open MPI. The order of the table matters: SkyPilot and dstack may sit on Kubernetes or SLURM, mpirun inside an allocation of
SLURM, whose variables are then those of one daemon and the same for every process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.backends.request import MASTER, NODES
from launcher.errors import LauncherError, Problem
from launcher.hosts.nodes.nodelist import expand_nodelist

# Set for every rank by who starts ranks: there a node's program would be started once for each.
_OF_RANKS = {"TORCHELASTIC_RUN_ID": "torchrun", "CROSS_RANK": "DeepSpeed's launch.py"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This node among the others."""

    told_by: str
    node: int
    nodes: int
    master: str  # name or address of node 0


@dataclass(frozen=True, slots=True)
class Source:
    """One scheduler, and the variables that tell the place. A `…LIST` is SLURM's short one; of names the first is node 0."""

    name: str
    node: str
    nodes: str
    master: str
    processes: str | None = None  # that were started in all, where there may be several on a node


SOURCES = (
    Source("dstack", "DSTACK_NODE_RANK", "DSTACK_NODES_NUM", "DSTACK_MASTER_NODE_IP"),
    Source("SkyPilot", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_IPS"),
    Source("Kubeflow Trainer", "PET_NODE_RANK", "PET_NNODES", "PET_MASTER_ADDR"),
    Source("Kubernetes", "JOB_COMPLETION_INDEX", NODES, MASTER),
    Source("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", MASTER),
    Source("SLURM", "SLURM_NODEID", "SLURM_STEP_NODELIST", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"),
)


def place_of(environ: Mapping[str, str]) -> Place:
    """LauncherError E440 where nobody tells it, or what is told makes no sense."""
    for variable, program in _OF_RANKS.items():
        if variable in environ:
            what = f"is set: {program} has started this process as a rank"
            raise LauncherError(_unknown(variable, what, "start it once on each node, by the scheduler"))
    source = next((source for source in SOURCES if source.node in environ), None)
    if source is None:
        variables = ", ".join(source.node for source in SOURCES)
        raise LauncherError(_unknown("", f"nobody tells which node this is: none of {variables} is set"))
    node, nodes = _number(environ, source.node), _count(environ, source.nodes)
    if node >= nodes:
        raise LauncherError(_unknown(source.node, f"{node} is not below {nodes}, the nodes of {source.nodes}"))
    if source.processes is not None and (processes := _number(environ, source.processes)) != nodes:
        what = f"{processes} processes were started on {nodes} nodes"
        raise LauncherError(_unknown(source.processes, what, "start one on each: srun --ntasks-per-node=1"))
    return Place(told_by=source.name, node=node, nodes=nodes, master=_names(environ, source.master)[0])


def check_place(place: Place, *, planned: int) -> None:
    """LauncherError E441 where the nodes are not as many as the plan is for."""
    if place.nodes != planned:
        what = f"{place.told_by} has started {place.nodes} {'node' if place.nodes == 1 else 'nodes'}, the plan is for {planned}"
        hint = f"start exactly {planned}, or set cluster.nodes to {place.nodes} and render again"
        raise LauncherError(Problem(code="E441", where=f"node {place.node}", what=what, hint=hint))


def _count(environ: Mapping[str, str], variable: str) -> int:
    return len(_names(environ, variable)) if variable.endswith("LIST") else _number(environ, variable)


def _number(environ: Mapping[str, str], variable: str) -> int:
    text = environ.get(variable, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise LauncherError(_unknown(variable, f"is {text[:80]!r}, not a number" if text else "is not set"))
    return int(text)


def _names(environ: Mapping[str, str], variable: str) -> list[str]:
    """One name, one a line, or SLURM's short list; never an option of whoever is called with it."""
    text = environ.get(variable, "")
    try:
        names = expand_nodelist(text) if variable.endswith("LIST") else text.split()
    except ValueError as error:
        raise LauncherError(_unknown(variable, str(error))) from None
    if not names or names[0].startswith("-"):
        raise LauncherError(_unknown(variable, f"is {text[:80]!r}, not the name of a host" if text else "is not set"))
    return names


def _unknown(variable: str, what: str, hint: str = "start it by `srun`, mpirun, or what `launcher render` wrote") -> Problem:
    return Problem(code="E440", where=variable, what=what, hint=hint)
