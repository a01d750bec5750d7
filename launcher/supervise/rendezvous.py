"""(cluster, machine, runs folder) -> Meeting: ranks are started as those of a stage, meet and exchange something. DO.

In a run folder of their own, <runs>/.doctor/meeting/, which is removed when they have met and kept with their logs when they
have not. Hosts with disks of their own keep theirs.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from launcher.backends.fleet_order import write_fleet_order
from launcher.backends.local import MEET
from launcher.backends.registry import Fleets, load_backend
from launcher.backends.shell import end_processes
from launcher.errors import LauncherError, Problem
from launcher.hosts.checks.meeting import Meeting, meeting_from
from launcher.hosts.machine.facts import HERE
from launcher.hosts.machine.ports import free_port
from launcher.plan.plan import Machine
from launcher.rundir.folder import RunDir, read_json, write_atomic
from launcher.spec.cluster import ClusterSpec
from launcher.supervise import evidence, watch
from launcher.supervise.lock import controlling
from launcher.supervise.stop import StopFlag

FOLDER = Path(".doctor", "meeting")  # below the runs folder, as deep as a run
LIMIT_S = 150.0  # the import of torch and DeepSpeed on a slow shared folder, and the exchange


def meet(cluster: ClusterSpec, machine: Machine, *, runs_root: Path, stop: StopFlag) -> Meeting:
    """LauncherError E436 with what stood against it. A stop that was asked for leaves no ranks, and is an E436 too."""
    run = RunDir(Path(os.path.realpath(runs_root)) / FOLDER)
    run.path.mkdir(parents=True, exist_ok=True)
    with controlling(run):
        end_processes(str(run.path), grace_s=watch.TERM_GRACE_S)
        told = _meet(cluster, machine, run, stop)
    try:
        meeting = meeting_from(told, machine.hosts or (HERE,))
    except ValueError as error:
        raise LauncherError(_problem(run, f"the ranks left no figures that can be used: {error}")) from None
    shutil.rmtree(run.path.parent, ignore_errors=True)
    return meeting


def _meet(cluster: ClusterSpec, machine: Machine, run: RunDir, stop: StopFlag) -> dict[str, object]:
    backend, folder = load_backend(cluster.backend), run.stage(MEET)
    shutil.rmtree(folder.path, ignore_errors=True)
    write_atomic(run.rendered / "hostfile", backend.hostfile_text(machine))
    if isinstance(backend, Fleets):
        write_fleet_order(run, backend.meet_order(cluster, machine, run))
    request = backend.meet_request(cluster, machine, run, port=free_port())
    files, overdue = watch.stage_files(run, MEET, request.world), False
    deadline_s = time.monotonic() + LIMIT_S

    def look_at_the_clock(now_s: float) -> None:
        nonlocal overdue
        if now_s > deadline_s and not overdue:
            overdue = True
            stop.ask(signal.SIGTERM)

    outcome = watch.follow(request, run, files, stop, on_tick=look_at_the_clock)
    if overdue:
        raise LauncherError(_problem(run, f"did not meet within {LIMIT_S:.0f} s: {_who_waited(files, machine)}"))
    if outcome.stopped:
        raise LauncherError(_problem(run, "were stopped"))
    problems = evidence.find_problems(outcome.evidence)
    if problems:
        raise LauncherError(_problem(run, f"{one.where} [{one.code}] {one.what}", one.hint) for one in problems)
    try:
        return read_json(folder.result)
    except (OSError, ValueError) as error:
        raise LauncherError(_problem(run, f"left no figures that can be used: {error}")) from None


def _who_waited(files: watch.Files, machine: Machine) -> str:
    """Ranks write their log as they start."""
    missing = [rank for rank, log in files.rank_logs.items() if not log.exists()]
    if not missing:
        return "every rank had started, so they wait for each other; see what the network lets through"
    hosts = dict.fromkeys(machine.hosts[rank // machine.slots] for rank in missing) if machine.hosts else {}
    return f"{len(missing)} of {len(files.rank_logs)} ranks had not started" + (f", on {', '.join(hosts)}" if hosts else "")


def _problem(run: RunDir, what: str, hint: str = "") -> Problem:
    logs = run.stage(MEET).logs
    return Problem(code="E436", where="rendezvous", what=what, hint=hint or f"read the logs in {logs}")
