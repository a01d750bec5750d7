"""RunDir -> Holder: who has a run now, of the three that may: a job of a queue, a program that started nodes, a controller. DO.

    controller.json    who walks the chain, on any host (lock.py)
    starter.json       mpirun or srun, on the host where it was started
    slurm.json         the job of a queue (queue.py)

The last two exclude each other: whoever starts or submits removes the other one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.backends.shell import boot_id, is_alive, read_stat
from launcher.backends.slurm import QueueState
from launcher.errors import LauncherError
from launcher.rundir.folder import RunDir, read_json, write_json
from launcher.supervise import queue
from launcher.supervise.lock import Owner, find_owner, this_process


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """At least one of the first three is there."""

    job: QueueState | None = None  # of a queue, that waits or runs
    starter: Owner | None = None  # on this host
    controller: Owner | None = None
    unheard: str = ""  # why the queue says nothing, where it does not answer

    @property
    def elsewhere(self) -> bool:
        """Whether no signal of ours reaches the controller."""
        return self.controller is None or self.controller.host != this_process().host

    @property
    def waits(self) -> bool:
        return self.job is not None and self.job.waits

    def text(self) -> str:
        lines = [self.job.text()] if self.job else []
        lines += [self.unheard] if self.unheard else []
        lines += [f"process {one.pid} on {one.host} controls it" for one in (self.controller,) if one]
        lines += [f"process {one.pid} on {one.host} has started its nodes" for one in (self.starter,) if one]
        return "\n".join(lines)


def holder_of(run: RunDir) -> Holder | None:
    """None where nobody has it. A controller of another host cannot be looked at and is taken to live, but where the job or the
    starter that it came by has ended. Where a queue does not answer, what the folder says of a controller counts.
    """
    controller = find_owner(run)
    try:
        job = queue.job_state(run)
    except LauncherError as error:
        return Holder(controller=controller, unheard=error.problems[0].text().splitlines()[0]) if controller else None
    noted = _noted_starter(run)
    starter = noted if noted and noted.boot == boot_id() and is_alive(noted.process) else None
    if job is not None and job.over:
        job, controller = None, _of_this_host(controller)
    elif noted is not None and starter is None:
        controller = _of_this_host(controller)
    return Holder(job=job, starter=starter, controller=controller) if job or starter or controller else None


def note_starter(run: RunDir, pid: int) -> None:
    if stat := read_stat(pid):
        me = this_process()
        owner = Owner(pid=pid, started_ticks=stat.started_ticks, host=me.host, boot=me.boot)
        write_json(_starter_file(run), asdict(owner))


def forget_starter(run: RunDir) -> None:
    _starter_file(run).unlink(missing_ok=True)


def _of_this_host(owner: Owner | None) -> Owner | None:
    return owner if owner is not None and owner.host == this_process().host else None


def _noted_starter(run: RunDir) -> Owner | None:
    """Where it was one of this host."""
    try:
        return _of_this_host(Owner(**read_json(_starter_file(run))))  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError):
        return None


def _starter_file(run: RunDir) -> Path:
    return run.path / "starter.json"
