"""<runs>/calibration/: what was measured on devices of each kind, and by how much finished runs were off. DO, small files.

    <device>.json   written by `launcher calibrate`: the numbers that a plan takes instead of the catalogue's, and the figures
    scales.json     measured / predicted of finished stages, by device and precision

Readable and editable. A file that cannot be understood is E416, never passed over; deleting it forgets what it held.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from launcher.errors import LauncherError, Problem
from launcher.plan.cost.calibration import Calibration, calibrated_rates, check_number, check_numbers, device_name
from launcher.plan.cost.rates import MEMORY_BOUNDS, MOST_RUNS, TIME_BOUNDS, Rates, Scale
from launcher.plan.plan import Machine
from launcher.rundir.folder import read_json, write_json

FOLDER, SCALES = "calibration", "scales.json"
SCHEMA = 1
STACK = "zerolaunch"


def calibration_path(runs_root: Path, device: str) -> Path:
    return runs_root / FOLDER / f"{device}.json"


def scales_path(runs_root: Path) -> Path:
    return runs_root / FOLDER / SCALES


def rates_here(rates: Rates, machine: Machine, runs_root: Path) -> Rates:
    """The rates with what was measured of this kind of device, and the scales of runs that finished on it. E416."""
    device = device_name(machine)
    path = calibration_path(runs_root, device)
    calibration = read_calibration(path)
    if calibration is not None:
        rates = replace(calibrated_rates(calibration, machine, rates), calibration=f"measured:{path}")
    return replace(rates, scales=scales_of(read_scales(scales_path(runs_root)), device, rates.basis))


def read_calibration(path: Path) -> Calibration | None:
    """None where there is none. LauncherError E416 for a file that is damaged."""
    told = _read(path)
    if told is None:
        return None
    try:
        if told["schema"] != SCHEMA:
            raise ValueError(f"schema {told['schema']!r} is not {SCHEMA}")
        calibration = Calibration(
            device=_text(told, "device"),
            measured=_text(told, "measured"),
            ranks=told["ranks"],  # type: ignore[arg-type]
            gpu=_block(told, "gpu"),
            links=_block(told, "links"),
            constants=_block(told, "constants"),
            disturbed=told.get("disturbed", 0.0),  # type: ignore[arg-type]
        )
        if calibration.device != path.stem:
            raise ValueError(f"device is {calibration.device!r}, but the file is of {path.stem}")
        check_numbers(calibration)
    except (KeyError, ValueError) as error:
        raise LauncherError(_damaged(path, error)) from None
    return calibration


def write_calibration(path: Path, calibration: Calibration, *, beside: Mapping[str, object]) -> None:
    """`beside`: what else is worth keeping: versions, the figures themselves."""
    write_json(path, {"schema": SCHEMA, **asdict(calibration), **beside})


Scales = dict[tuple[str, str], tuple[Scale, str, str]]  # (device, precision) -> scale, basis of its times, last update


def scales_of(scales: Scales, device: str, basis: str) -> dict[str, Scale]:
    """By precision. A time counts only for the speeds that it was compared with: measuring anew starts it again."""
    found = {}
    for (one, precision), (scale, of, _) in scales.items():
        if one == device:
            found[precision] = scale if of == basis else replace(scale, time=1.0, runs=0)
    return found


def read_scales(path: Path) -> Scales:
    """Empty where there are none. LauncherError E416 for a file that is damaged."""
    told = _read(path)
    if told is None:
        return {}
    try:
        rows = told["scales"]
        if told["schema"] != SCHEMA or not isinstance(rows, list):
            raise ValueError("`schema` or `scales` is not what it has to be")
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise ValueError(f"entry {number} of scales is {row!r}, no object")
        return dict(_scale(row) for row in rows if row["stack"] == STACK)
    except (KeyError, ValueError) as error:
        raise LauncherError(_damaged(path, error)) from None


def _scale(row: Mapping[str, object]) -> tuple[tuple[str, str], tuple[Scale, str, str]]:
    bounds = {"time": TIME_BOUNDS, "memory": MEMORY_BOUNDS, "runs": (0, MOST_RUNS), "memory_runs": (0, MOST_RUNS)}
    numbers = {name: row[name] for name in bounds}
    for name, value in numbers.items():
        check_number(name, value, *bounds[name], whole=name.endswith("runs"))
    key = (_text(row, "device"), _text(row, "precision"))
    return key, (Scale(**numbers), _text(row, "speeds"), _text(row, "updated"))  # type: ignore[arg-type]


def write_scales(path: Path, scales: Scales) -> None:
    rows = [
        {"device": device, "stack": STACK, "precision": precision, **asdict(scale), "speeds": basis, "updated": updated}
        for (device, precision), (scale, basis, updated) in sorted(scales.items())
    ]
    write_json(path, {"schema": SCHEMA, "scales": rows})


@contextmanager
def updating(path: Path) -> Iterator[None]:
    """Runs that finish together change the scales one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.parent / ".guard", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, object] | None:
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LauncherError(_damaged(path, error)) from None


def _block(told: Mapping[str, object], name: str) -> dict[str, float]:
    value = told[name]
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    return value


def _text(told: Mapping[str, object], name: str) -> str:
    value = told[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, no text")
    return value


def _damaged(path: Path, error: Exception) -> Problem:
    if isinstance(error, OSError):
        why = (error.strerror or "unreadable").lower()
    elif isinstance(error, json.JSONDecodeError):
        why = f"no JSON: {error}"
    else:
        why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
    again = f"or measure again on that machine: launcher calibrate --runs {shlex.quote(str(path.parent.parent))}"
    again = "and what finished runs told is forgotten" if path.name == SCALES else again
    return Problem(code="E416", where=str(path), what=f"cannot be used: {why}", hint=f"remove {path}, {again}")
