"""(job, plan, run folder) -> the batch script of SLURM, and the words with which its queue is spoken to. Pure.

The script has one task on each node, and the tasks come by themselves: each is told its place by SLURM (hosts/nodes/place.py).
The same script is what sbatch takes and what a shell inside an allocation runs, where the lines for sbatch are comments.

What the queue says is parsed here; asking it is supervise/queue.py's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.backends import joined
from launcher.errors import LauncherError, Problem
from launcher.plan.plan import Plan
from launcher.rundir.folder import RunDir
from launcher.spec.job import JobSpec
from launcher.spec.slurm import SlurmSpec

find_problems = joined.find_problems
prepare_request = joined.prepare_request
stage_request = joined.stage_request
fleet_order = joined.fleet_order
hostfile_text = joined.hostfile_text

HAS_QUEUE = True
SCRIPT = "job.sbatch"
ALLOCATION = "SLURM_JOB_ID"  # in the environment of whatever runs inside of one
# After the first task has ended: node 0 takes that long to see that a node is gone, to end the others and to write the report.
LAST_TASK_S = 300
QUEUED = frozenset(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"))
FORGOTTEN = "UNKNOWN"
NO_NODES = ("", "None assigned")
RUNNING = frozenset(("RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A job as its queue tells it."""

    job: str
    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def waits(self) -> bool:
        return self.state in QUEUED

    @property
    def over(self) -> bool:
        return self.state not in QUEUED | RUNNING

    def text(self) -> str:
        where = f" on {self.nodes}" if self.nodes else ""
        why = f" ({self.reason})" if self.reason and not where else ""
        return f"SLURM job {self.job}: {self.state}{where}{why}"


def rendered(job: JobSpec, plan: Plan, run: RunDir, sealed: Mapping[str, str]) -> dict[str, str]:
    """Name below rendered/ -> text. LauncherError E443 where sbatch could not be told the folder."""
    lines = [
        "#!/bin/sh",
        *(f"#SBATCH --{option}" for option in _options(job, plan, run)),
        f"# Job {job.name}. Inside an allocation of {plan.machine.nodes} nodes a shell runs it as it is.",
        "# Its words are handed on: `--stage NAME` runs one stage.",
        # Only the talk is kept: the report lies in the run folder.
        f'exec {shlex.join([*_srun(job, plan), *joined.node_argv(job, run, str(run.path))])} "$@" </dev/null >/dev/null',
    ]
    return {SCRIPT: "\n".join(lines) + "\n"}


def script(run: RunDir) -> Path:
    return run.rendered / SCRIPT


def next_step(job: JobSpec, run: RunDir) -> str:
    return shlex.join(submit_argv(run))


def is_queued(environ: Mapping[str, str]) -> bool:
    """Whether a run waits for its nodes in a queue. Inside an allocation they are there."""
    return ALLOCATION not in environ


def program(environ: Mapping[str, str]) -> str:
    """That has the nodes started."""
    return "sbatch" if is_queued(environ) else "srun"


def num_nodes(environ: Mapping[str, str]) -> int | None:
    """Of the allocation that we are in; None where it is still to be asked for, or does not say."""
    text = environ.get("SLURM_JOB_NUM_NODES", "")
    return int(text) if not is_queued(environ) and text.isascii() and text.isdecimal() else None


def _options(job: JobSpec, plan: Plan, run: RunDir) -> Iterator[str]:
    slurm = _block(job)
    yield f"job-name={job_name(run)}"
    yield f"comment={_quoted(run.path)}"
    yield from (f"nodes={plan.machine.nodes}", "ntasks-per-node=1", f"cpus-per-task={slurm.cpus}")
    if plan.machine.device == "cuda":
        yield f"gres={slurm.gres}:{plan.machine.slots}"
    yield from _given(slurm)
    yield "requeue" if slurm.requeue else "no-requeue"
    yield f"signal=USR1@{slurm.leave_s}"
    yield from (f"output={_quoted(run.controller_log).replace('%', '%%')}", "open-mode=append")


def _given(slurm: SlurmSpec) -> Iterator[str]:
    if slurm.memory_gib:
        yield f"mem={slurm.memory_gib}G"
    if slurm.minutes:
        yield f"time={slurm.minutes}"
    if slurm.exclusive:
        yield "exclusive"
    names = ("partition", "account", "qos", "reservation", "constraint")
    yield from (f"{name}={value}" for name in names if (value := getattr(slurm, name)) is not None)
    yield from (f"{name}={value}" for name, value in slurm.options.items())


def _srun(job: JobSpec, plan: Plan) -> list[str]:
    """A task that fails leaves the others to node 0, which tells why. Cores are said again: srun forgets those of the job."""
    nodes = plan.machine.nodes
    tasks = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={_block(job).cpus}"]
    return ["srun", *tasks, "--cpu-bind=none", "--mpi=none", "--kill-on-bad-exit=0", f"--wait={LAST_TASK_S}"]


def _quoted(path: Path) -> str:
    """As a line of the script takes it. LauncherError E443 for what no quoting saves."""
    text = str(path)
    if odd := next((char for char in text if char in "\"'\\" or not char.isprintable()), None):
        hint = "choose a folder without quotes and backslashes: --runs DIR"
        what = f"sbatch cannot be told a path with {odd!r} in it"
        raise LauncherError(Problem(code="E443", where=text, what=what, hint=hint))
    return f'"{text}"'


# --- the queue ---


def job_name(run: RunDir) -> str:
    """By which the job of a run is found, should this program have died before it wrote the number down.

    squeue splits at commas, and a line of sbatch at blanks. Runs that have one name then are told apart by the comment.
    """
    return re.sub("[^A-Za-z0-9._-]", "_", f"{run.path.parent.name}.{run.path.name}")


def submit_argv(run: RunDir, words: Sequence[str] = ()) -> tuple[str, ...]:
    return ("sbatch", "--parsable", str(script(run)), *words)


def submitted_job(text: str) -> str:
    """The job's number, from `number;cluster`. ValueError."""
    number = text.strip().splitlines()[-1].partition(";")[0] if text.strip() else ""
    if not (number.isascii() and number.isdecimal()):
        raise ValueError(f"{text[:200]!r} is no number of a job")
    return number


_FORMAT = "--format=%i|%T|%N|%r|%k"


PING = ("squeue", "--noheader", "--me", "--format=%i")


def find_argv(run: RunDir) -> tuple[str, ...]:
    """Jobs of this user with the run's name that wait or run."""
    return ("squeue", "--noheader", "--me", f"--name={job_name(run)}", _FORMAT)


def state_argv(job: str) -> tuple[str, ...]:
    return ("squeue", "--noheader", "--states=all", f"--jobs={job}", _FORMAT)


def parse_states(text: str) -> list[tuple[QueueState, str]]:
    """Each job of squeue's answer, with its comment: the run's folder."""
    rows = [line.split("|", 4) for line in text.splitlines() if line.count("|") >= 4]
    return [
        (QueueState(job=job.strip(), state=state, nodes=nodes, reason="" if reason == "None" else reason), comment)
        for job, state, nodes, reason, comment in rows
    ]


def forgotten(job: str) -> QueueState:
    return QueueState(job=job, state=FORGOTTEN, reason="the queue has forgotten it")


def account_argv(job: str) -> tuple[str, ...]:
    """What accounting has of a job: one line, of its last attempt."""
    return ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=JobID,State,NodeList,JobName")


def parse_account(text: str, run: RunDir) -> QueueState | None:
    """How the run's job ended, by sacct's answer; None where it does not say. Numbers come again, so the name is asked too."""
    for job, state, nodes, name in (row.split("|", 3) for row in text.splitlines() if row.count("|") >= 3):
        told = QueueState(job=job, state=state.split()[0] if state.split() else "", nodes="" if nodes in NO_NODES else nodes)
        if name == job_name(run) and told.state and told.over:
            return told
    return None


def cancel_argv(job: str) -> tuple[str, ...]:
    return ("scancel", job)


def requeue_argv(job: str) -> tuple[str, ...]:
    return ("scontrol", "requeue", job)


def _block(job: JobSpec) -> SlurmSpec:
    assert job.cluster.slurm is not None  # spec: the backend needs it
    return job.cluster.slurm
