"""The cases that were equal → benchmarks/results/equal_runs.json, from which docs are made."""

from __future__ import annotations

import datetime
import json
from importlib.metadata import version
from pathlib import Path

from tests.stages.equal_runs.compare import Differences
from tests.stages.equal_runs.table import Case


class Results:
    """Cases in the order in which they ran."""

    def __init__(self) -> None:
        self._cases: list[dict[str, object]] = []

    def add(self, case: Case, found: Differences, seconds: float) -> None:
        degrees = {"dp": case.dp, "tp": case.tp, "pp": case.pp, "sp": case.sp}
        self._cases.append(
            {
                "name": case.name,
                "kind": case.kind,
                "family": case.family,
                **degrees,
                "zero": case.zero,
                "precision": case.precision,
                "largest_loss_difference": float(f"{found.loss:.2e}"),
                "largest_norm_difference": float(f"{found.norm:.2e}"),
                "largest_weight_difference": float(f"{found.weight:.2e}"),
                "seconds": round(seconds, 1),
            }
        )

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        versions = {name: version(name) for name in ("deepspeed", "torch")}
        told = {"date": datetime.date.today().isoformat(), **versions, "cases": self._cases}
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
