"""The state of this host's GPUs, by NVML: errors of their memory, and who holds it. DO, only looking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

from launcher.hosts.machine.facts import GpuHealth
from launcher.hosts.machine.nvml import load_nvml


def find_health(numbers: Sequence[int]) -> tuple[GpuHealth, ...]:
    """Of the GPUs with these numbers, which the driver has just listed. One that does not answer now says so."""
    if not numbers:
        return ()
    pynvml = load_nvml()
    pynvml.nvmlInit()
    try:
        return tuple(_health(pynvml, number) for number in numbers)
    finally:
        pynvml.nvmlShutdown()


def _health(pynvml: ModuleType, number: int) -> GpuHealth:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
    except pynvml.NVMLError as error:
        return GpuHealth(number=number, ecc_errors=None, failing=f"it does not answer: {error}", pids=())

    def told(ask: Callable[[], object]) -> object:
        """None where this kind of GPU does not know the question."""
        try:
            return ask()
        except (pynvml.NVMLError, AttributeError):
            return None

    uncorrected, volatile = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    errors = told(lambda: int(pynvml.nvmlDeviceGetTotalEccErrors(handle, uncorrected, volatile)))
    rows = told(lambda: tuple(pynvml.nvmlDeviceGetRemappedRows(handle)))  # corrected, uncorrected, pending, failed
    pending = told(lambda: bool(pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle)))
    processes = told(lambda: [int(one.pid) for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)])
    return GpuHealth(
        number=number,
        ecc_errors=errors if isinstance(errors, int) else None,
        failing=_failing(rows, pending),
        pids=tuple(processes) if isinstance(processes, list) else (),
    )


def _failing(rows: object, pending: object) -> str | None:
    if isinstance(rows, tuple) and len(rows) == 4:
        if rows[3]:
            return "a row of its memory could not be replaced"
        if rows[2]:
            return "a row of its memory waits to be replaced at the next reset"
    return "a page of its memory waits to be retired at the next reset" if pending else None
