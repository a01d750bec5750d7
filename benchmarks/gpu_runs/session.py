"""Cases in their order until the time is over: told by the plan, measured, and written before the next begins. DO."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from gpu_runs.cases import Case, Told, tell
from gpu_runs.measure import Outcome, driver_version, measure
from gpu_runs.rows import SMI, Ground, append, done_in, is_done, readings, rows_of, step_seconds
from launcher.plan.away import away_machine
from launcher.plan.plan import Machine
from launcher.spec.load import load_job_text
from launcher.supervise.facts import detect_machine
from launcher.units import GIB, bytes_text

SHORTEST_S = 25.0  # less than that is no time for a case
ONE_RANK = "{name: gpu-run, model: {source: a/b}, cluster: {slots: 1}, stages: [{kind: pretrain, data: {source: python-docs}}]}"


def machine_here(device: str) -> Machine | None:
    """This machine with one rank; None where it has no GPU that torch can use, and one is asked for."""
    job = load_job_text(ONE_RANK, file_name="gpu-run", folder=Path.cwd())
    environ = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else os.environ
    machine = detect_machine(job, runs_root=Path(tempfile.gettempdir()), environ=environ)
    return machine if machine.device == device else None


def machine_of(gpu: str) -> Machine:
    """A machine with one such GPU, as the catalogue has it: only to be told of."""
    return away_machine(gpu, slots=1)


def list_text(cases: Sequence[Case], machine: Machine) -> str:
    lines = [f"{machine.gpu or 'cpu'}, {bytes_text(machine.memory_bytes)}, host {bytes_text(machine.host_memory_bytes)}"]
    lines += [f"{'case':52} {'plan GiB':>9} {'p_fit':>6} {'step s':>8}"]
    for case in cases:
        told = tell(case, machine)
        step = f"{told.step_s:8.3f}" if told.step_s else f"{'-':>8}"
        left_out = f"  left out: {told.hopeless}" if told.hopeless else ""
        lines.append(f"{case.name:52} {told.memory.peak_bytes / GIB:9.1f} {told.memory.p_fit or 0:6.3f} {step}{left_out}")
    return "\n".join(lines)


def measure_all(cases: Sequence[Case], machine: Machine, out: Path, *, minutes: float) -> int:
    """How many cases failed. Cases whose rows are in `out` are not measured again."""
    ground = Ground(machine=machine, driver=driver_version() if machine.device == "cuda" else "", day=date.today())
    until_s, there, failed = time.monotonic() + 60 * minutes, done_in(out), 0
    for number, case in enumerate(cases):
        told, left_s = tell(case, machine), until_s - time.monotonic()
        if is_done(case, ground, there):
            say(case, "is in the file already")
        elif told.hopeless:
            say(case, f"left out, {told.text()}: {told.hopeless}")
        elif left_s < SHORTEST_S:
            print(f"time is over: {len(cases) - number} cases are left for another run with the same --out")
            break
        else:
            failed += _one(case, told, ground, out, left_s=left_s)
    return failed


def _one(case: Case, told: Told, ground: Ground, out: Path, *, left_s: float) -> bool:
    """Whether it failed. A case that only the end of the session cuts off leaves no row."""
    say(case, told.text())
    limit_s = min(case.limit_s, left_s)
    with tempfile.TemporaryDirectory(prefix="gpu-run-") as folder:
        outcome = measure(case, told, ground.machine, Path(folder) / "case", limit_s=limit_s)
    if outcome.kind == "skipped" and limit_s < case.limit_s and outcome.wall_s >= limit_s:
        say(case, "cut off by the end of the session")
        return False
    append(out, rows_of(case, told, outcome, ground))
    say(case, outcome_text(told, outcome))
    if outcome.log:
        print("\n".join(f"    {line}" for line in outcome.log.splitlines()[-25:]), flush=True)
    return outcome.kind == "skipped"


def outcome_text(told: Told, outcome: Outcome) -> str:
    if outcome.kind == "skipped":
        return f"failed: {outcome.reason}"
    if outcome.kind == "oom":
        return f"out of memory in {outcome.measured.get('phase', 'start')} ({outcome.wall_s:.0f} s in all)"
    sizes, step_s = readings(outcome), step_seconds(outcome)
    memory = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in sizes.items())
    ratio = f" (plan / measured {told.memory.peak_bytes / sizes[SMI]:.2f})" if sizes.get(SMI) else ""
    time_ratio = f" (plan / measured {told.step_s / step_s:.2f})" if told.step_s else ""
    return f"{memory} GiB{ratio}, {step_s:.4f} s a step{time_ratio}, {outcome.wall_s:.0f} s in all"


def say(case: Case, text: str) -> None:
    print(f"{case.name}: {text}", flush=True)
