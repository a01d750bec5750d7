"""Case -> Outcome: a fresh child runs it, is watched and, when its time is up, ended with all it started. DO."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pynvml

from gpu_runs.cases import MEASURED, PARENT, Case, Told
from gpu_runs.folder import Command, make_command
from launcher.errors import LauncherError
from launcher.plan.plan import Machine
from launcher.rundir.folder import read_json

WARM_UP_STEPS = 3  # the first ones allocate, and find their algorithms
LOOK_EVERY_S = 0.05
MEASURED_S = 6.0  # about so long is measured, by the plan's word
FEWEST, MOST = 4, 20
# What a device without memory left is called; the launcher's E555 says it of the host, too.
OUT_OF_MEMORY = ("CUDA out of memory", "OutOfMemoryError", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`measured` is the child's measured.json. `device_bytes`: the device's used memory at most, above what it was before."""

    kind: Literal["measured", "oom", "skipped"]
    reason: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    device_bytes: int | None = None
    log: str = ""  # the end of it, where something went wrong
    wall_s: float = 0.0


def steps_for(told: Told) -> int:
    measured = FEWEST if told.step_s is None else round(MEASURED_S / told.step_s)
    return WARM_UP_STEPS + min(MOST, max(FEWEST, measured))


def measure(case: Case, told: Told, machine: Machine, folder: Path, *, limit_s: float) -> Outcome:
    """Everything of the case lies in `folder`, which does not exist yet."""
    began_s = time.monotonic()
    steps = steps_for(told) if machine.device == "cuda" else WARM_UP_STEPS + 3
    try:
        command = make_command(case, machine, folder, steps=steps)
    except LauncherError as error:
        return Outcome(kind="skipped", reason=error.text())
    log = folder / "child.log"
    with Gauge.of(machine) as gauge, log.open("wb") as output:
        child = subprocess.Popen(
            command.argv,
            env={**command.env, PARENT: str(os.getpid())},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = wait(child, gauge, until_s=began_s + limit_s)
        finally:
            end(child)
    text = _log_text(command, log)
    wall_s = time.monotonic() - began_s
    return outcome_of(command, code, text, device_bytes=gauge.above_bytes, wall_s=wall_s, limit_s=limit_s)


def wait(child: subprocess.Popen[bytes], gauge: Gauge, *, until_s: float) -> int | None:
    """The exit code; None where the time is up before."""
    while time.monotonic() < until_s:
        gauge.look()
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=LOOK_EVERY_S)
    return None


def end(child: subprocess.Popen[bytes]) -> None:
    """The child and every process of its session."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def outcome_of(
    command: Command, code: int | None, log: str, *, device_bytes: int | None, wall_s: float, limit_s: float
) -> Outcome:
    seen: dict[str, Any] = {"wall_s": wall_s, "device_bytes": device_bytes}
    with suppress(OSError, ValueError):
        seen["measured"] = read_json(command.run.path / MEASURED)
    if code == 0 and "measured" in seen:
        return Outcome(kind="measured", **seen)
    said = _problem(command)
    if any(sign in said or sign in log for sign in OUT_OF_MEMORY):
        return Outcome(kind="oom", reason=said, **seen)
    if code is None:
        reason = f"not done after {limit_s:.0f} s"
    else:
        reason = said or (f"ended by signal {-code}" if code < 0 else f"exit code {code}")
    return Outcome(kind="skipped", reason=reason, log=log, **seen)


def _problem(command: Command) -> str:
    """What the rank says of its own failure: `E555 no memory is left …`; empty where it says nothing."""
    try:
        problems = read_json(command.run.stage(command.stage).problem(0))["problems"]
    except (OSError, ValueError, KeyError):
        return ""
    assert isinstance(problems, list)
    return "; ".join(f"{one['code']} {one['what']}" for one in problems)


def _log_text(command: Command, log: Path) -> str:
    """The end of what the child and then its rank have printed."""
    text = ""
    for path in (log, command.run.stage(command.stage).rank_log(0)):
        with suppress(OSError):
            text += path.read_text(encoding="utf-8", errors="replace")[-4000:]
    return text


class Gauge:
    """The used memory of one GPU as the driver counts it, whoever uses it: the largest seen. Nothing on a CPU."""

    def __init__(self, handle: Any = None):
        self.handle = handle
        self.before_bytes = self.most_bytes = self._used()

    @staticmethod
    @contextmanager
    def of(machine: Machine) -> Iterator[Gauge]:
        if machine.device == "cpu":
            yield Gauge()
            return
        pynvml.nvmlInit()
        try:
            yield Gauge(pynvml.nvmlDeviceGetHandleByIndex(machine.devices[0]))
        finally:
            pynvml.nvmlShutdown()

    def look(self) -> None:
        if self.handle is not None:
            self.most_bytes = max(self.most_bytes, self._used())

    def _used(self) -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used) if self.handle is not None else 0

    @property
    def above_bytes(self) -> int | None:
        return self.most_bytes - self.before_bytes if self.handle is not None else None


def driver_version() -> str:
    pynvml.nvmlInit()
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()
    return version.decode() if isinstance(version, bytes) else str(version)
