"""The plan's step times and peaks against real runs of two CPU processes, after `launcher calibrate` has measured the machine.

python benchmarks/cpu_plan.py [--tries N] [--json] [--out FILE]
python benchmarks/cpu_plan.py --again FILE [--json] [--out FILE]    what was measured then, predicted by the plan of now

A model of 41 M parameters, so that arithmetic and not the interpreter decides; one stage under each layout. Other programs on
the cores falsify a step, so what they take is watched: the median is of the steps in which it was least, and stands beside it.
Of several calibrations the least disturbed one counts. No scale of an earlier run is applied. `CPU` are the CPU seconds of a
rank and step, all steps counted: what a step would take if nobody waited for anybody.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import psutil
from processes import measure

JOB = """
name: cpu-plan
model:
  new: {family: llama, layers: 8, hidden: 640, heads: 10, ffn: 1728, positions: 512}
  tokenizer: {train: {vocab: 2048}}
batch: {global: 8, micro: 2}
cluster: {slots: 2}
stages:
  - kind: pretrain
    data: {source: python-docs, max_tokens: 256, limit: 400}
    steps: 24
    eval_rows: 8
    log_every: 1
    checkpoint_every: 1000
"""
LAYOUTS = {
    "ZeRO 1, dp 2": "{zero: 1}",
    "ZeRO 2, dp 2": "{zero: 2}",
    "ZeRO 3, dp 2": "{zero: 3}",
    "tensor 2": "{tensor: 2}",
    "pipeline 2": "{pipeline: 2}",
}
WARM_UP_STEPS = 3
QUIET = 0.05  # share of the cores that others may take
FEWEST = 5  # steps of a median
CORES, RANKS = psutil.cpu_count() or 1, 2
LAUNCHER = Path(sys.executable).with_name("launcher")


@dataclass(slots=True)
class Onlooker:
    """CPU seconds of other programs and of our own so far, twice a second: (time, others, own)."""

    seen: list[tuple[float, float, float]] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.5):
            own = 0.0
            for process in [me, *me.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                own += times.user + times.system + times.children_user + times.children_system
            now = psutil.cpu_times()
            busy = sum(now) - now.idle - now.iowait - now.guest - now.guest_nice
            self.seen.append((time.time(), busy - own, own))

    def stop(self) -> None:
        self._done.set()

    def shares(self, began: float, ended: float) -> tuple[float, float]:
        """Shares of the cores that others took between two moments, and we."""
        before = max((one for one in self.seen if one[0] <= began), default=self.seen[0])
        after = min((one for one in self.seen if one[0] >= ended), default=self.seen[-1])
        seconds = max(after[0] - before[0], 1e-6) * CORES
        return max(0.0, (after[1] - before[1]) / seconds), (after[2] - before[2]) / seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    layout: str
    predicted_s: float
    measured_s: float
    predicted_bytes: int
    measured_bytes: int
    cpu_s: float  # of one rank and step
    steps: int  # that the median is of
    others: float  # share of the cores that other programs took in them

    @property
    def time_ratio(self) -> float:
        return self.predicted_s / self.measured_s

    @property
    def memory_ratio(self) -> float:
        return self.predicted_bytes / self.measured_bytes


def started(runs: Path, *words: str) -> Onlooker:
    """A command of the launcher, watched to its end."""
    log, onlooker = runs / "log.txt", Onlooker()
    thread = threading.Thread(target=onlooker.watch, daemon=True)
    thread.start()
    cost = measure([str(LAUNCHER), *words, "--runs", str(runs)], env={"CUDA_VISIBLE_DEVICES": ""}, log=log)
    onlooker.stop()
    thread.join()
    if cost.exit_code:
        sys.exit(log.read_text()[-4000:])
    return onlooker


def calibrate(runs: Path, *, tries: int) -> tuple[dict, float]:
    """The least disturbed of some calibrations, which the plans then take, and what others took of the cores in it."""
    best = (1.1, "")
    for _ in range(tries):
        onlooker = started(runs, "calibrate")
        others, _ = onlooker.shares(onlooker.seen[0][0], onlooker.seen[-1][0])
        [path] = (runs / "calibration").glob("cpu-*.json")
        best = min(best, (others, path.read_text()))
        if others <= QUIET:
            break
    path.write_text(best[1])
    return json.loads(best[1]), best[0]


def run_layout(runs: Path, job: Path, name: str) -> dict:
    """What was measured of one layout: the fields of a Row but for those predicted."""
    onlooker = started(runs, "run", str(job), "--set", f"parallel={LAYOUTS[name]}")
    stage = max(runs.glob("cpu-plan/*/job.json"), key=lambda path: path.parent.name).parent / "stages" / "pretrain"
    steps = step_times(stage / "metrics.jsonl", onlooker)
    quiet = [one for one in steps if one[0] <= QUIET]
    used = quiet if len(quiet) >= FEWEST else sorted(steps)[:FEWEST]
    return {
        "layout": name,
        "measured_s": median(seconds for _, seconds, _ in used),
        "measured_bytes": max(json.loads((stage / "result.json").read_text())["peak_rss_bytes"]),
        "cpu_s": median(cpu_s for _, _, cpu_s in steps),
        "steps": len(used),
        "others": round(fmean(others for others, _, _ in used), 3),
    }


def step_times(metrics: Path, onlooker: Onlooker) -> list[tuple[float, float, float]]:
    """(share that others took, seconds, CPU seconds of a rank) of each step behind the first few."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = []
    for began, ended in pairwise([line["t"] for line in lines if "loss" in line][WARM_UP_STEPS - 1 :]):
        others, own = onlooker.shares(began, ended)
        steps.append((others, ended - began, own * (ended - began) * CORES / RANKS))
    return steps


def predicted(runs: Path, job: Path, name: str) -> dict:
    """What `launcher plan` says of a layout, by the calibration in `runs`."""
    (runs / "calibration" / "scales.json").unlink(missing_ok=True)
    words = ["plan", str(job), "--set", f"parallel={LAYOUTS[name]}", "--runs", str(runs), "--json"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(LAUNCHER), *words], env=env, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    if done.returncode:
        sys.exit(str(told))
    assert told["calibration"].startswith("measured:"), "another machine: it has other cores than the one that was measured"
    [stage] = told["stages"]
    return {"predicted_s": stage["time"]["step_s"], "predicted_bytes": stage["memory"]["gpu_peak_bytes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", metavar="N", type=int, default=5, help="most calibrations, until one is undisturbed")
    parser.add_argument("--again", metavar="FILE", type=Path, help="predict what FILE holds once more, run nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-cpu-plan-") as folder:
        runs, job = Path(folder) / "runs", Path(folder) / "job.yaml"
        runs.mkdir()
        job.write_text(JOB, encoding="utf-8")
        if args.again:
            told = json.loads(args.again.read_text())
            calibration, seen = told["calibration"], told["rows"]
            path = runs / "calibration" / f"{calibration['device']}.json"
            path.parent.mkdir()
            path.write_text(json.dumps(calibration))
        else:
            calibration, others = calibrate(runs, tries=args.tries)
            calibration["others"] = round(others, 3)
            seen = [run_layout(runs, job, name) for name in LAYOUTS]
        rows = [Row(**one | predicted(runs, job, one["layout"])) for one in seen]
    result = {
        "calibration": calibration,
        "rows": [asdict(row) for row in rows],
        "time_mape": round(fmean(abs(row.time_ratio - 1) for row in rows), 4),
        "memory_mape": round(fmean(abs(row.memory_ratio - 1) for row in rows), 4),
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1) if args.json else text(rows, result))


def text(rows: Sequence[Row], result: dict) -> str:
    pair = f"{'predicted':>9} {'measured':>9} {'ratio':>6}"
    lines = [f"{'layout':14} {pair}   {'CPU':>6}   {pair}  steps  others"]
    for row in rows:
        time_cells = f"{row.predicted_s:7.2f} s {row.measured_s:7.2f} s {row.time_ratio:6.2f}"
        sizes = f"{row.predicted_bytes / 2**20:5.0f} MiB {row.measured_bytes / 2**20:5.0f} MiB {row.memory_ratio:6.2f}"
        lines.append(f"{row.layout:14} {time_cells}   {row.cpu_s:4.2f} s   {sizes}  {row.steps:5}  {row.others:.0%}")
    calibration = result["calibration"]
    lines += ["", f"MAPE of step times {result['time_mape']:.1%}, of peaks {result['memory_mape']:.1%}"]
    lines += [f"calibration: {calibration['seconds']} s, others took {calibration['others']:.0%} of the cores"]
    return "\n".join([*lines, *(f"  {name} {calibration[name]}" for name in ("gpu", "links", "constants"))])


if __name__ == "__main__":
    main()
