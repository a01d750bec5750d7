"""The embedded default through all five stages: what it teaches, and wall, CPU and memory of every process together.

python benchmarks/demo.py [--runs-dir DIR] [--json]

Exit code 1 where a figure on held-out data, the time or the memory is beyond its limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from processes import measure

LIMIT_WALL_S, LIMIT_PSS_BYTES = 360.0, 4 * 1024**3
# (stage, figure, what must hold of it before and after)
LEARNED: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
    ("pretrain", "loss", lambda before, after: before - after >= 1.5),
    ("sft", "loss", lambda before, after: before - after >= 0.7),
    ("reward", "accuracy", lambda before, after: after >= 0.75),
    ("dpo", "accuracy", lambda before, after: after >= 0.75),
    ("dpo", "margin", lambda before, after: after >= 0.5),
    ("ppo", "score", lambda before, after: after - before >= 0.3),
    ("ppo", "kl", lambda before, after: after < 10),
)
ROOT = Path(__file__).resolve().parent.parent


def not_learned(runs: Path) -> list[str]:
    """The figures of the newest run that are below what the example promises."""
    run = max(runs.glob("*/*/job.json")).parent
    missed = []
    for stage, name, holds in LEARNED:
        result = json.loads((run / "stages" / stage / "result.json").read_text())
        before, after = result["before"][name], result["after"][name]
        missed += [] if holds(before, after) else [f"{stage} {name}: {before:.3f} -> {after:.3f}"]
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", type=Path, help="keep the run there; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-demo-") as temporary:
        runs = args.runs_dir or Path(temporary) / "runs"
        log = Path(temporary) / "log.txt"
        launcher = Path(sys.executable).with_name("launcher")
        cost = measure([str(launcher), "run", str(ROOT / "examples/tiny.yaml"), "--runs", str(runs)], log=log, sample_s=1.0)
        if cost.exit_code:
            print(log.read_text()[-4000:], file=sys.stderr)
            return 1
        result = {
            "wall_s": round(cost.wall_s, 1),
            "cpu_s": round(cost.cpu_s, 1),
            "peak_gib": round(cost.pss_peak_bytes / 1024**3, 2),
            "not_learned": not_learned(runs),
        }
        print(json.dumps(result) if args.json else f"{log.read_text()[-3000:]}\n{result}")
    cheap = cost.wall_s <= LIMIT_WALL_S and cost.pss_peak_bytes <= LIMIT_PSS_BYTES
    return 0 if cheap and not result["not_learned"] else 1


if __name__ == "__main__":
    sys.exit(main())
