"""SlurmSpec: what a job of SLURM says beside the job itself, and the rules of its fields. ASK, pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, StringConstraints

from launcher.spec.base import Block
from launcher.spec.places import FieldPath, Finding

# Stands in a line of the batch script, where a blank, a quote or `#` would begin something else.
OPTION_VALUE = r"^[A-Za-z0-9_][A-Za-z0-9_.,:;=&|*()\[\]@+/-]*$"
OPTION_NAME = r"^[a-z][a-z-]*$"

OptionValue = Annotated[str, StringConstraints(pattern=OPTION_VALUE, max_length=1024)]
OptionName = Annotated[str, StringConstraints(pattern=OPTION_NAME, max_length=63)]

# Of sbatch: what the plan, another field or the way a run is followed decides.
_OURS = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "cluster.nodes decides it"),
    **dict.fromkeys(("gres", "gpus", "gpus-per-node", "gpus-per-task"), "cluster.slots and slurm.gres decide it"),
    **dict.fromkeys(("cpus-per-task", "mincpus"), "slurm.cpus decides it"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "slurm.memory_gib decides it"),
    **dict.fromkeys(("output", "error", "open-mode", "input"), "the talk of a run lies in its folder"),
    **dict.fromkeys(("job-name", "comment"), "a run's job is found by it"),
    **dict.fromkeys(("requeue", "no-requeue"), "slurm.requeue decides it"),
    "signal": "slurm.leave_s decides it",
    "time": "slurm.minutes decides it",
    "array": "a run is one job",
    "wrap": "the script is rendered",
    "wait": "`launcher run` waits",
    "parsable": "`launcher run` reads the job's number",
    **{name: f"slurm.{name} decides it" for name in ("partition", "account", "qos", "reservation", "constraint", "exclusive")},
}


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
        True, description="start again by itself after a lost node, a preemption, and where the time limit is near"
    )
    leave_s: int = Field(
        300, ge=90, le=65_535, description="before the time limit the run saves and leaves; SLURM may say so a minute early"
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
        if name in _OURS:
            yield Finding(code="E109", path=(*path, "options", name), what=f"may not be given: {_OURS[name]}", hint="remove it")
    if slurm and slurm.minutes and slurm.leave_s >= 60 * slurm.minutes:
        what = f"{slurm.leave_s} s before a limit of {slurm.minutes} min is before the start"
        hint = f"use {max(90, 30 * slurm.minutes)}" if slurm.minutes > 3 else "raise minutes"
        yield Finding(code="E109", path=(*path, "leave_s"), what=what, hint=hint, also=((*path, "minutes"),))
