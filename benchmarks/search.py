"""Candidates that the plan judges in a second on one core, and how long `launcher plan` takes for 70 B on 512 GPUs.

python benchmarks/search.py [--runs 5] [--json] [--out FILE]

A candidate is a layout whose memory is worked out, and its time where it fits. Jobs are planned for 4096 H100: pretraining of
70 B parameters with 512 tokens a row, and all five stages of an 8 B model with 64 tokens a row, whose batch has 180 divisors.
Each search runs in a process of its own, so that nothing is kept from the one before; what is measured is its CPU time without
start-up. The wall time of the command is cold and whole.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from processes import measure

from launcher.plan.away import away_machine
from launcher.plan.known_shapes import KNOWN_CONFIGS
from launcher.plan.make import make_plan
from launcher.plan.shape import shape_from_config
from launcher.spec.job import JobSpec
from launcher.spec.places import Places

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "llama70b_512xh100.yaml"
LIMIT_10K_S, LIMIT_100K_S, LIMIT_WALL_S = 1.0, 6.0, 1.0
SLOTS, NODES = 8, 512
CHAIN = ("pretrain", "sft", "reward", "dpo", "ppo")
CASES = {  # model, tokens of a row, rows of a step, stages
    "10k": ("meta-llama/Llama-3.1-70B", 512, 4096 * 720, ("pretrain", "sft")),
    "100k": ("meta-llama/Llama-3.1-8B", 64, 4096 * 110_880, CHAIN),
}


def job_of(model: str, tokens: int, rows: int, kinds: tuple[str, ...]) -> JobSpec:
    stages: list[dict[str, object]] = []
    for kind in kinds:
        start = {} if kind == "pretrain" else {"from": "pretrain" if kind == "sft" else "sft"}
        more = {"reward": "reward", "max_new_tokens": 32} if kind == "ppo" else {}
        stages.append({"kind": kind, "data": {"source": "python-docs", "max_tokens": tokens}, **start, **more})
    cluster = {"gpu": "h100-80gb", "slots": SLOTS, "nodes": NODES}
    text = {"name": "search", "model": {"source": model}, "cluster": cluster, "batch": {"global": rows}, "stages": stages}
    return JobSpec.model_validate_json(json.dumps(text))


def search_once(name: str) -> dict[str, float]:
    """Candidates and CPU seconds of one job, in this process."""
    model, tokens, rows, kinds = CASES[name]
    job, shape = job_of(model, tokens, rows, kinds), shape_from_config(KNOWN_CONFIGS[model], file=model)
    machine = away_machine("h100-80gb", slots=SLOTS, nodes=NODES)
    places = Places(file_name="job.yaml", marks={}, stage_names=list(kinds))
    start = time.process_time()
    plan = make_plan(job, machine=machine, shape=shape, places=places)
    return {"cpu_s": time.process_time() - start, "judged": sum(stage.judged for stage in plan.stages)}


def search_apart(name: str) -> dict[str, float]:
    """The same in a new process."""
    done = subprocess.run([sys.executable, __file__, "--once", name], cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(name: str, *, candidates: int, runs: int) -> dict[str, float]:
    """Median CPU seconds for so many candidates."""
    found = [search_apart(name) for _ in range(runs)]
    judged, cpu_s = found[0]["judged"], statistics.median(one["cpu_s"] for one in found)
    return {
        "judged": judged,
        "cpu_s": round(cpu_s, 3),
        "per_s": round(judged / cpu_s),
        f"cpu_s_for_{candidates}": round(cpu_s * candidates / judged, 3),
    }


def plan_wall_s(runs: int) -> float:
    argv = [str(Path(sys.executable).with_name("launcher")), "plan", str(EXAMPLE)]
    measure(argv)  # the first run reads files from disk and writes byte code
    costs = [measure(argv) for _ in range(runs)]
    assert {cost.exit_code for cost in costs} == {0}
    return round(statistics.median(cost.wall_s for cost in costs), 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    parser.add_argument("--once", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(search_once(args.once)))
        return 0
    few = measured("10k", candidates=10_000, runs=args.runs)
    many = measured("100k", candidates=100_000, runs=args.runs)
    wall_s = plan_wall_s(args.runs)
    result = {
        "date": str(date.today()),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "runs": args.runs,
        "10k": few,
        "100k": many,
        "plan_512_gpus_wall_s": wall_s,
    }
    good = few["cpu_s_for_10000"] <= LIMIT_10K_S and many["cpu_s_for_100000"] <= LIMIT_100K_S and wall_s <= LIMIT_WALL_S
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if args.json else _text(few, many, wall_s, args.runs))
    return 0 if good else 1


def _text(few: dict[str, float], many: dict[str, float], wall_s: float, runs: int) -> str:
    lines = [f"medians of {runs}, one core, 4096 GPUs"]
    for name, found, limit in (("10000", few, LIMIT_10K_S), ("100000", many, LIMIT_100K_S)):
        seconds, judged = found[f"cpu_s_for_{name}"], found["judged"]
        lines.append(f"{name} candidates in {seconds} s (limit {limit}): {judged} judged in {found['cpu_s']} s")
    return "\n".join([*lines, f"launcher plan {EXAMPLE.relative_to(ROOT)}: {wall_s} s wall (limit {LIMIT_WALL_S})"])


if __name__ == "__main__":
    sys.exit(main())
