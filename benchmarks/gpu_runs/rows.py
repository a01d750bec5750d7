"""Outcome -> rows with the columns of benchmarks/data/published_points.csv, appended to a file case by case."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

from published.ours import FITS, FRAMEWORK, OUT_OF_MEMORY, RECOMPUTES, SKIPPED, offload_cell, shape_note
from published.rows import PEAK

from gpu_runs.cases import Case, Told
from gpu_runs.measure import WARM_UP_STEPS, Outcome
from launcher.plan.plan import Machine
from launcher.units import GIB

PUBLISHED = Path(__file__).resolve().parents[1] / "data" / "published_points.csv"
READINGS = {"allocated": "max allocated", "reserved": "max reserved", "resident": "resident"}
SMI = "nvidia-smi"
Row = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all rows of a file share."""

    machine: Machine
    driver: str
    day: date

    @property
    def gpu(self) -> str:
        return self.machine.gpu or "cpu"


def columns() -> list[str]:
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))


def case_id(case: Case, ground: Ground) -> str:
    return f"OURS-{ground.gpu}-{case.name}"


def rows_of(case: Case, told: Told, outcome: Outcome, ground: Ground) -> list[Row]:
    """A row for the step's time and one for each reading of memory; one that says OOM; or one that says why there is none."""
    shared, notes = _shared_cells(case, ground), _notes(case, told, outcome, ground)
    if outcome.kind == "skipped":
        cells = {"metric": SKIPPED, "value": "", "measured": "0", "complete": "0"}
        return [_row(case, ground, SKIPPED, {**shared, **cells, "notes": f"{notes}; {_one_line(outcome.reason)}"})]
    if outcome.kind == "oom":
        cells = {"metric": FITS, "value": OUT_OF_MEMORY}
        return [_row(case, ground, FITS, {**shared, **cells, "notes": f"{notes}; {_one_line(outcome.reason)}"})]
    step = {"metric": "step_s", "value": f"{step_seconds(outcome):.5g}"}
    rows = [_row(case, ground, "step", {**shared, **step, "notes": notes})]
    for kind, size in readings(outcome).items():
        peak = {"metric": PEAK, "value": f"{size / GIB:.4f}", "mem_kind": kind}
        rows.append(_row(case, ground, kind.replace(" ", "-"), {**shared, **peak, "notes": notes}))
    return rows


def step_seconds(outcome: Outcome) -> float:
    """Median from the end of a step to the end of the next, behind the warm-up: rows are read and figures written in it."""
    ends_s = outcome.measured["ends_s"]
    return median(after - before for before, after in zip(ends_s[WARM_UP_STEPS - 1 :], ends_s[WARM_UP_STEPS:], strict=False))


def readings(outcome: Outcome) -> dict[str, int]:
    """Kind -> bytes, the largest of all phases."""
    found: dict[str, int] = {}
    for sizes in outcome.measured["peaks"].values():
        for name, size in sizes.items():
            found[READINGS[name]] = max(size, found.get(READINGS[name], 0))
    return found | ({SMI: outcome.device_bytes} if outcome.device_bytes is not None else {})


def _shared_cells(case: Case, ground: Ground) -> Row:
    own, machine = case.own(cuda=ground.machine.device == "cuda"), ground.machine
    load, layout, shape = own.load, own.layout, own.load.shape
    return {
        "source": f"zerolaunch benchmarks/gpu.py {ground.day.isoformat()}",
        "model": case.model,
        "params_B": f"{load.num_params / 1e9:.4g}",
        "layers": str(shape.layers),
        "hidden": str(shape.hidden),
        "heads": str(shape.heads),
        "kv_heads": str(shape.kv_heads),
        "ffn": str(shape.ffn),
        "vocab": str(shape.vocab),
        "seq": str(case.seq),
        "GPU": ground.gpu,
        "gpu_mem_GB": f"{machine.memory_bytes / GIB:.2f}",
        **dict.fromkeys(("n_gpus", "dp", "tp", "pp", "sp"), "1"),
        "zero_stage": str(case.zero),
        "offload": offload_cell(layout),
        "recompute": RECOMPUTES[case.checkpointing],
        "micro_batch": str(case.micro),
        "global_batch": str(case.micro * case.accum),
        "grad_accum": str(case.accum),
        "precision": case.precision,
        "method": f"lora r{case.lora} all-linear" if case.lora else "full",
        "gated_mlp": str(int(shape.gated)),
        "tied_emb": str(int(shape.tied)),
        "attn": "sdpa",
        "framework": FRAMEWORK,
        "optimizer": "AdamW fused",
        "measured": "1",
        "complete": "1",
    }


def _notes(case: Case, told: Told, outcome: Outcome, ground: Ground) -> str:
    """What has no column; the shape first (published/ours.py reads it), then what was there, then what was seen."""
    shape, measured = case.own(cuda=True).load.shape, outcome.measured
    versions = " ".join(f"{name} {text}" for name, text in measured.get("versions", {}).items() if name != "device")
    driver = f"driver {ground.driver}" if ground.driver else ""
    phases = " ".join(
        f"{phase} {' '.join(f'{name} {size / GIB:.2f}' for name, size in sizes.items())} GiB"
        for phase, sizes in measured.get("peaks", {}).items()
    )
    engine_s = measured.get("engine_s", [])[WARM_UP_STEPS:]
    steps = f"{len(engine_s)} steps behind {WARM_UP_STEPS}, engine alone {median(engine_s):.5g} s" if engine_s else ""
    reached = f"reached {measured['phase']}" if outcome.kind != "measured" and "phase" in measured else ""
    parts = (shape_note(shape), versions, driver, told.text(), phases, steps, reached, f"{outcome.wall_s:.0f} s in all")
    return "; ".join(part for part in parts if part)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _row(case: Case, ground: Ground, what: str, cells: Row) -> Row:
    return dict.fromkeys(columns(), "") | cells | {"id": f"{case_id(case, ground)}-{what}"}


def append(path: Path, rows: list[Row]) -> None:
    """On the disk before the next case begins. The header is written with the first rows."""
    new = not path.exists() or not path.stat().st_size
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns(), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def done_in(path: Path) -> set[str]:
    """Ids of the rows that are there already, of cases that were measured or ran out of memory."""
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"] for row in csv.DictReader(file) if row["metric"] != SKIPPED}


def is_done(case: Case, ground: Ground, ids: set[str]) -> bool:
    return any(f"{case_id(case, ground)}-{what}" in ids for what in ("step", FITS))
