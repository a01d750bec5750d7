"""result.json: what a stage reached on held-out data and what it cost. Collective: every rank tells its own cost."""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import torch

from launcher.rundir.folder import RunDir, write_json
from launcher.rundir.order import StageOrder
from launcher.train.ranks import Ranks, gather

SCHEMA = 1
WARM_UP_STEPS = 3  # the first steps allocate, compile and find their algorithms
FEWEST_TIMED_STEPS = 3
KEPT_STEPS = 1000


def own_cost(device: torch.device) -> tuple[float, int, int | None]:
    """CPU seconds of this process so far, its peak resident memory (ru_maxrss counts KiB on Linux), and that on its GPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, device_peak_bytes(device)


def device_peak_bytes(device: torch.device) -> int | None:
    """What torch reserved at most, and what is taken outside of it: CUDA's context, nccl, other programs. None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    outside = total - free - torch.cuda.memory_reserved(device)
    return torch.cuda.max_memory_reserved(device) + max(0, outside)


@dataclass(slots=True)
class Pace:
    """How fast an attempt steps, and on rows of how many tokens, padding counted; the last thousand steps are kept."""

    steps: int = 0
    longest_row_tokens: float = 0.0
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))
    _row_tokens: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))

    def add(self, seconds: float, row_tokens: Sequence[float]) -> None:
        """One optimizer step. `row_tokens`: of a row, in each of its micro-batches."""
        self.steps += 1
        self.longest_row_tokens = max(self.longest_row_tokens, *row_tokens)
        if self.steps > WARM_UP_STEPS:
            self._seconds.append(seconds)
            self._row_tokens.append(fmean(row_tokens))

    def figures(self) -> dict[str, float | int | None]:
        """Medians behind the first few steps; None where too few are left to tell."""
        enough = len(self._seconds) >= FEWEST_TIMED_STEPS
        return {
            "step_s": median(self._seconds) if enough else None,
            "row_tokens": median(self._row_tokens) if enough else None,
            "longest_row_tokens": self.longest_row_tokens or None,
            "timed_steps": len(self._seconds),
        }


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
    pace: Pace | None = None,
) -> None:
    """Write stages/<stage>/result.json on rank 0. `started` is time.time() at the start of the story. Collective."""
    costs = gather(own_cost(ranks.device))
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
            "pace": pace.figures() if pace else None,
            "cpu_s": [round(cpu_s, 2) for cpu_s, _, _ in costs],
            "peak_rss_bytes": [peak for _, peak, _ in costs],
            "peak_device_bytes": [peak for _, _, peak in costs] if ranks.device.type == "cuda" else None,
            "notes": list(notes),
            "samples": [dict(sample) for sample in samples],
        },
    )
