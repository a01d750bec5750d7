"""(machine, runs folder) -> Calibration: the ranks that a plan would use measure this machine. DO.

They are started as a stage is, in a run folder of their own below <runs>/calibration/, which keeps their logs. Unlike a stage
they end with the process that started them.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from launcher.backends.registry import load_backend
from launcher.backends.shell import end_processes
from launcher.errors import LauncherError, Problem
from launcher.hosts.machine.ports import free_port
from launcher.plan.cost.calibration import Calibration, calibration_of
from launcher.plan.cost.figures import Figures, figures_from
from launcher.plan.plan import Machine
from launcher.rundir.folder import RunDir, read_json, write_atomic
from launcher.supervise import evidence, watch
from launcher.supervise.calibration import FOLDER, calibration_path, write_calibration
from launcher.supervise.lock import Owner, controlling, this_process
from launcher.supervise.preflight import package_problems, record_versions
from launcher.supervise.stop import StopFlag

STAGE = "calibrate"
MEASURING = "measuring"  # its run folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    calibration: Calibration
    figures: Figures
    path: Path  # of the file that plans read
    seconds: float


def measure_machine(machine: Machine, *, runs_root: Path, now: datetime, stop: StopFlag) -> Measured | None:
    """Measure, and write the device's file; None where it was stopped. LauncherError of the ranks, E407 and E424."""
    problems = package_problems()
    if problems:
        raise LauncherError(problems)
    run = RunDir((runs_root / FOLDER / MEASURING).resolve())
    run.path.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    with controlling(run, refusal=_measuring_already):
        end_processes(str(run.path), grace_s=watch.TERM_GRACE_S)
        told = _figures(machine, run, stop)
        if told is None:
            return None
        try:
            figures = figures_from(told)
        except ValueError as error:
            raise LauncherError(_unreadable(run, error)) from None
        moment = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        calibration = calibration_of(figures, machine, measured=moment)
        seconds = time.monotonic() - began_s
        path = calibration_path(runs_root, calibration.device)
        beside = {"seconds": round(seconds, 1), "cores": machine.cores, **_versions(run), "figures": told}
        write_calibration(path, calibration, beside=beside)
    return Measured(calibration=calibration, figures=figures, path=path, seconds=seconds)


def _figures(machine: Machine, run: RunDir, stop: StopFlag) -> dict[str, object] | None:
    """What rank 0 wrote; None where it was stopped."""
    backend, folder = load_backend("local"), run.stage(STAGE)
    shutil.rmtree(folder.path, ignore_errors=True)
    record_versions(run)
    write_atomic(run.rendered / "hostfile", backend.hostfile_text(machine))
    request = backend.calibrate_request(machine, run, port=free_port(), starter=os.getpid())
    outcome = watch.follow(request, run, watch.stage_files(run, STAGE, request.world), stop)
    if outcome.stopped:
        return None
    problems = evidence.find_problems(outcome.evidence)
    if problems:
        raise LauncherError(problems)
    try:
        return read_json(folder.result)
    except (OSError, ValueError) as error:
        raise LauncherError(_unreadable(run, error)) from None


def _versions(run: RunDir) -> dict[str, object]:
    told = read_json(run.path / "versions.json")
    return {"host": told["host"], "versions": {"python": told["python"], **told["packages"]}}  # type: ignore[dict-item]


def _measuring_already(run: RunDir, owner: Owner) -> Problem:
    here = owner.host == this_process().host
    hint = "wait for it, it takes half a minute, or end it"
    return Problem(
        code="E424",
        where=str(run.path),
        what=f"process {owner.pid} on {owner.host} measures already: two at once would falsify each other",
        hint=f"{hint}: kill {owner.pid}"
        if here
        else f"{hint} on {owner.host}; other machines can measure under another --runs",
    )


def _unreadable(run: RunDir, error: Exception) -> Problem:
    what = f"the ranks left no figures that can be used: {error}"
    return Problem(code="E510", where=str(run.stage(STAGE).result), what=what, hint=f"read {run.stage(STAGE).logs}")
