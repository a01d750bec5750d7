"""SlurmSpec: what a job of SLURM says beside the job itself, and the rules of its fields. ASK, pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, StringConstraints

from launcher.spec.base import Block
from launcher.spec.places import FieldPath, Finding

# Stands in a line of the batch script, where a blank, a quote or `#` would begin something else.
OPTION_VALUE = r"^[A-Za-z0-9_/][A-Za-z0-9_.,:;=&|*()\[\]@+/-]*$"
OPTION_NAME = r"^[a-z][a-z-]*$"

OptionValue = Annotated[str, StringConstraints(pattern=OPTION_VALUE, max_length=1024)]
OptionName = Annotated[str, StringConstraints(pattern=OPTION_NAME, max_length=63)]

# Of sbatch: what the plan, another field or the way a run is followed decides.
_TASKS = "nodes ntasks ntasks-per-node ntasks-per-core ntasks-per-socket ntasks-per-board ntasks-per-gpu ntasks-per-tres"
_GPUS = "gres gpus gpus-per-node gpus-per-task gpus-per-socket gpu-bind tres-per-task tres-bind"
_OURS = {
    **dict.fromkeys((*_TASKS.split(), "tasks-per-node"), "cluster.nodes decides it, with one task on each"),
    **dict.fromkeys(_GPUS.split(), "cluster.slots and slurm.gres decide it"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu", "mincpus", "overcommit"), "slurm.cpus decides it"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "slurm.memory_gib decides it"),
    **dict.fromkeys(("output", "error", "open-mode", "input"), "the talk of a run lies in its folder"),
    **dict.fromkeys(("job-name", "comment", "jobid"), "a run's job is found by it"),
    **dict.fromkeys(("clusters", "cluster-constraint"), "a run's job is looked for in the cluster of this host"),
    **dict.fromkeys(("uid", "gid"), "a run's job is looked for among those of this user"),
    **dict.fromkeys(("export", "export-file", "get-user-env"), "cluster.env and cluster.secrets decide it"),
    **dict.fromkeys(("requeue", "no-requeue", "no-kill"), "slurm.requeue decides it"),
    **dict.fromkeys(("exclusive", "oversubscribe", "share"), "slurm.exclusive decides it"),
    **dict.fromkeys(("time", "time-min"), "slurm.minutes decides it"),
    **dict.fromkeys(("array", "het-group"), "a run is one job"),
    **dict.fromkeys(("test-only", "help", "usage", "version"), "nothing would be submitted"),
    "chdir": "a run's job starts where it is submitted, and all its paths are absolute",
    "batch": "all nodes are alike, the first one runs the script",
    "signal": "slurm.leave_s decides it",
    "wrap": "the script is rendered",
    "wait": "`launcher run` waits",
    "parsable": "`launcher run` reads the job's number",
    **{name: f"slurm.{name} decides it" for name in ("partition", "account", "qos", "reservation", "constraint")},
}
EARLY_S = 60  # that SLURM may send a signal too early


class SlurmSpec(Block):
    """One job of SLURM, with one task a node. Run folder, Python and data lie where all nodes see them under the same name."""

    partition: OptionValue | None = Field(None, description="None: the cluster's default")
    account: OptionValue | None = Field(None, description="that is charged; None: the user's default")
    qos: OptionValue | None = Field(None, description="quality of service")
    reservation: OptionValue | None = Field(None, description="that the job is placed in")
    constraint: OptionValue | None = Field(None, description="features that nodes must have: `h100&ib`")
    minutes: int | None = Field(None, ge=5, le=525_600, description="time limit; None: the partition's default")
    cpus: int | None = Field(None, ge=1, le=4096, description="cores of each node for the job; needed")
    memory_gib: int | None = Field(
        None, ge=1, le=10**6, description="memory of each node for the job; needed where cluster.gpu is absent"
    )
    gres: OptionValue = Field("gpu", description="what the cluster calls its GPUs in --gres: `gpu`, `gpu:h100`")
    exclusive: bool = Field(False, description="no other job on the nodes")
    requeue: bool = Field(
        True, description="start again by itself after a lost node and where the time limit is near; lets SLURM do so elsewhere"
    )
    leave_s: int = Field(
        900,
        ge=90,
        le=65_535,
        description="before the time limit the run saves and leaves, for which its ranks have 600 s;"
        " SLURM may say so a minute early",
    )
    options: dict[OptionName, OptionValue] = Field(
        default_factory=dict, description="further options of sbatch, without dashes: `nodelist: node[1-4]`"
    )


def findings(slurm: SlurmSpec | None, *, has_gpu: bool) -> Iterator[Finding]:
    """Of a job whose backend is slurm."""
    path: FieldPath = ("cluster", "slurm")
    if slurm is None or slurm.cpus is None:
        what = "is missing: a task of SLURM has one core where nothing is said"
        yield Finding(code="E107", path=(*path, "cpus"), what=what, hint="add `slurm: {cpus: 96}`, the cores of a node")
    if not has_gpu and (slurm is None or slurm.memory_gib is None):
        what = "is missing: without cluster.gpu the job's nodes are planned for by their cores and memory"
        hint = "add it: `slurm: {cpus: 16, memory_gib: 64}`; or name the nodes' GPU in cluster.gpu"
        yield Finding(code="E107", path=(*path, "memory_gib"), what=what, hint=hint)
    for name in slurm.options if slurm else ():
        if why := _why_not(name):
            yield Finding(code="E109", path=(*path, "options", name), what=f"may not be given: {why}", hint="remove it")
    if slurm and slurm.minutes and slurm.leave_s + EARLY_S >= 60 * slurm.minutes:
        what = f"{slurm.leave_s} s before a limit of {slurm.minutes} min is before the first step"
        least = (slurm.leave_s + EARLY_S) // 60 + 1
        hint = f"use leave_s: {30 * slurm.minutes} where ranks save within that, or minutes: {least} or more"
        yield Finding(code="E109", path=(*path, "leave_s"), what=what, hint=hint, also=((*path, "minutes"),))


def _why_not(option: str) -> str | None:
    """sbatch takes an option by its first letters too."""
    if option in _OURS:
        return _OURS[option]
    ours = next((name for name in sorted(_OURS) if name.startswith(option)), None)
    return None if ours is None else f"sbatch may read it as {ours}, and {_OURS[ours]}"
