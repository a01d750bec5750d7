"""The planner's time and memory model against published measurements, with whole sources held out in turn.

python benchmarks/planner.py [--json]               constants fitted on all other sources, for each source
python benchmarks/planner.py --points FILE [--json] another file with the same columns, with the constants as they are shipped
python benchmarks/planner.py --fit                  the constants that all sources give: what launcher/plan ships

Scored is |predicted / measured - 1|: its mean (MAPE) and median, for step times and for peaks of memory, and what choosing the
predicted fastest of measured choices for one job loses of throughput, on average. A dense decoder row with complete = 1 that
cannot be scored counts as an error of 100 %. What is taken for a size or a GPU that a row does not tell is counted: `assumed`.

The result says what it was worked out from: hashes of the data and of all constants, and how the shipped constants score by the
formulas of that day. A test compares them with today's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, quantiles

from published.fit import PEAK_PRIORS, TIME_PRIORS, fit_peaks, fit_times, predict_time
from published.peaks import PeakConstants, peak_bytes
from published.rows import Point, Skipped, peaks, read_points, times
from published.table import NotATable

from launcher.plan.cost.constants import PUBLISHED
from launcher.plan.cost.fastest import fastest
from launcher.plan.cost.work import Work
from launcher.plan.gpus import GPUS
from launcher.plan.memory import p_fit

DATA = Path(__file__).parent / "data" / "published_points.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    point: Point
    predicted: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.point.value

    @property
    def error(self) -> float:
        return abs(self.ratio - 1)


def held_out(points: Sequence[Point], fit: Callable, predict: Callable) -> list[Scored]:
    """Every source predicted by constants that were fitted without it."""
    scored = []
    for source in dict.fromkeys(point.source for point in points):
        constants = fit([point for point in points if point.source != source])
        scored += [Scored(point=point, predicted=predict(point, constants)) for point in points if point.source == source]
    return scored


def choice_losses(scored: Sequence[Scored]) -> list[tuple[float, str]]:
    """For each job with at least three measured choices: 1 - throughput of the one the planner takes / the best one's.

    A choice that was measured several times counts with its median.
    """
    jobs: dict[tuple, dict[object, list[Scored]]] = defaultdict(lambda: defaultdict(list))
    for one in scored:
        jobs[one.point.group][one.point.work].append(one)
    losses = []
    for choices in jobs.values():
        if len(choices) < 3:
            continue
        real = {work: median(one.point.tokens_per_s for one in found) for work, found in choices.items()}
        told = {work: median(one.ratio / one.point.tokens_per_s for one in found) for work, found in choices.items()}
        chosen = fastest(list(choices), seconds=told.__getitem__, merit=_plainness)
        first = next(iter(choices.values()))[0].point
        losses.append((1 - real[chosen] / max(real.values()), f"{first.id} and {len(choices) - 1} more"))
    return losses


def _plainness(work: Work) -> tuple[int, float]:
    """As the launcher's search: fewer degrees, then the larger micro-batch."""
    return -sum(degree > 1 for degree in (work.tp, work.pp, work.sp)), work.tokens


def summary(scored: Sequence[Scored], skipped: Sequence[Skipped]) -> dict[str, object]:
    """What `--json` prints. Errors are shares of 1; None where there is no such row."""
    time, memory = ([one for one in scored if one.point.memory == kind] for kind in (False, True))
    missed = {kind: [1.0 for one in skipped if one.missed and one.memory == kind] for kind in (False, True)}
    losses = [loss for loss, _ in choice_losses(time)]
    time_errors, memory_errors = [one.error for one in time] + missed[False], [one.error for one in memory] + missed[True]
    return {
        "time_mape": _mean(time_errors),
        "time_median": _median(time_errors),
        "memory_mape": _mean(memory_errors),
        "memory_median": _median(memory_errors),
        "choice_loss": _mean(losses),
        "time_rows": len(time),
        "memory_rows": len(memory),
        "choices": len(losses),
        "time_true_over_predicted": _spread(time),
        "memory_true_over_predicted": _spread(memory),
        "over_limit_at_95": _mean([float(exceeds(one)) for one in memory]),
        "missed": sum(one.missed for one in skipped),
        "assumed": dict(Counter(said for one in scored for said in one.point.assumed).most_common()),
        "skipped": dict(Counter(one.reason for one in skipped).most_common()),
    }


def _spread(scored: Sequence[Scored]) -> dict[str, float] | None:
    """Quantiles of measured / predicted."""
    if len(scored) < 2:
        return None
    tenths = quantiles([1 / one.ratio for one in scored], n=20)
    return {"p5": round(tenths[0], 3), "p10": round(tenths[1], 3), "p90": round(tenths[17], 3), "p95": round(tenths[18], 3)}


def exceeds(scored: Scored) -> bool:
    """Whether the peak is above the smallest limit into which the planner would have said it fits with 95 %."""
    limit = scored.predicted
    while p_fit(round(scored.predicted), round(limit)) < 0.95:
        limit *= 1.005
    return scored.point.value > limit


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 4) if values else None


def _median(values: Sequence[float]) -> float | None:
    return round(median(values), 4) if values else None


def by_source(scored: Sequence[Scored]) -> list[dict[str, object]]:
    """Rows, MAPE, median and median ratio of each source, times before peaks."""
    found = defaultdict(list)
    for one in scored:
        found[one.point.memory, one.point.source].append(one)
    return [
        {
            "source": source,
            "measures": "peak" if memory else "step time",
            "rows": len(ones),
            "mape": _mean([one.error for one in ones]),
            "median": _median([one.error for one in ones]),
            "ratio": _median([one.ratio for one in ones]),
        }
        for (memory, source), ones in sorted(found.items(), key=lambda item: (item[0][0], -len(item[1])))
    ]


def worst(scored: Sequence[Scored], count: int = 12) -> list[dict[str, object]]:
    """The rows that are predicted worst, at most two of one group of choices."""
    taken: Counter[object] = Counter()
    rows = []
    for one in sorted(scored, key=lambda one: -abs(math.log(one.ratio))):
        key = (one.point.group, one.point.memory)
        taken[key] += 1
        if taken[key] <= 2:
            rows.append({"id": one.point.id, "what": _what(one.point), "ratio": round(one.ratio, 2)})
        if len(rows) == count:
            break
    return rows


def _what(point: Point) -> str:
    row, work = point.row, point.work
    what = f"{row['model']}, {row['framework']}, {work.world} x {point.gpu.name}"
    return f"{what}, dp {work.dp} tp {work.tp} pp {work.pp}, ZeRO {work.zero}, {work.row_tokens} tokens"


def score_all(points: Sequence[Point]) -> list[Scored]:
    """With the constants that the launcher ships."""
    return [
        Scored(
            point=point,
            predicted=peak_bytes(point, PeakConstants()) if point.memory else predict_time(point, PUBLISHED),
        )
        for point in points
    ]


def basis(points: Sequence[Point], skipped: Sequence[Skipped]) -> dict[str, object]:
    """What a score stands on: it is of this code and of these files where all of it is the same."""
    constants = {
        "time": asdict(PUBLISHED),
        "peaks": asdict(PeakConstants()),
        "gpus": {name: asdict(gpu) for name, gpu in GPUS.items()},
        "priors": {"time": TIME_PRIORS, "peaks": PEAK_PRIORS},
    }
    return {
        "data_sha256": {path.name: _sha256(path.read_bytes()) for path in sorted(DATA.parent.iterdir())},
        "constants_sha256": _sha256(json.dumps(constants, sort_keys=True).encode()),
        "shipped": summary(score_all(points), skipped),
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hold_out_all(points: Sequence[Point]) -> list[Scored]:
    time = held_out(list(times(points)), fit_times, predict_time)
    return time + held_out(list(peaks(points)), fit_peaks, peak_bytes)


def report_text(summary: dict[str, object], sources: list[dict[str, object]], rows: list[dict[str, object]]) -> str:
    lines = [f"{name:18} {value}" for name, value in summary.items() if name not in ("skipped", "assumed")]
    lines += ["", f"{'source':64} {'rows':>5} {'MAPE':>7} {'median':>7} {'ratio':>6}"]
    for one in sources:
        name = f"{one['source']} ({one['measures']})"[-64:]
        lines.append(f"{name:64} {one['rows']:5} {one['mape']:7.1%} {one['median']:7.1%} {one['ratio']:6.2f}")
    lines += ["", "worst rows (predicted / measured)"]
    lines += [f"  {one['ratio']:5.2f}  {one['id']}: {one['what']}" for one in rows]
    for title in ("assumed", "skipped"):
        reasons = summary[title]
        assert isinstance(reasons, dict)
        lines += ["", title, *(f"  {count:4}  {reason}" for reason, count in reasons.items())] if reasons else []
    return "\n".join(lines)


def print_fit(points: Sequence[Point]) -> None:
    """Values to be written into launcher/plan/cost/constants.py, launcher/plan/memory.py and published/peaks.py."""
    for known, priors in ((fit_times(list(times(points))), TIME_PRIORS), (fit_peaks(list(peaks(points))), PEAK_PRIORS)):
        for name, value in asdict(known).items():
            if name in priors:
                print(f"{name:28} {value:.4g}   known beforehand: {priors[name][0]:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path, help="score this file with the constants as they are shipped")
    parser.add_argument("--fit", action="store_true", help="print the constants that all rows give")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    args = parser.parse_args()
    try:
        points, skipped = read_points(args.points or DATA)
    except NotATable as error:
        parser.error(str(error))
    if args.fit:
        print_fit(points)
        return
    scored = score_all(points) if args.points else hold_out_all(points)
    told, sources, rows = summary(scored, skipped), by_source(scored), worst(scored)
    result = {**told, "held_out": args.points is None, "sources": sources, "worst": rows}
    result |= {} if args.points else {"basis": basis(points, skipped)}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1) if args.json else report_text(told, sources, rows))


if __name__ == "__main__":
    main()
