"""result.json: what a stage reached on held-out data and what it cost. Collective: every rank tells its own cost."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence

from launcher.rundir.folder import RunDir, write_json
from launcher.rundir.order import StageOrder
from launcher.train.ranks import Ranks, gather

SCHEMA = 1


def own_cost() -> tuple[float, int]:
    """CPU seconds of this process so far, and its peak resident memory in bytes (ru_maxrss counts KiB on Linux)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def write_result(
    run: RunDir,
    order: StageOrder,
    ranks: Ranks,
    *,
    before: Mapping[str, float],
    after: Mapping[str, float],
    steps: int,
    started: float,
    groups: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    samples: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write stages/<stage>/result.json on rank 0. `started` is time.time() at the start of the story. Collective."""
    costs = gather(own_cost())
    if not ranks.first:
        return
    write_json(
        run.stage(order.stage).result,
        {
            "schema": SCHEMA,
            "stage": order.stage,
            "kind": order.kind,
            "before": dict(before),
            "after": dict(after),
            "groups": dict(groups or {}),
            "steps": steps,
            "world": ranks.world,
            # plan.json is of the last attempt, which may have kept this stage as it was trained under another layout
            "layout": {name: getattr(order, name) for name in ("dp", "tp", "pp", "sp", "zero", "precision")},
            "seconds": round(time.time() - started, 3),
            "cpu_s": [round(cpu_s, 2) for cpu_s, _ in costs],
            "peak_rss_bytes": [peak for _, peak in costs],
            "notes": list(notes),
            "samples": [dict(sample) for sample in samples],
        },
    )
