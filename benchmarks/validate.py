"""Cold start of `launcher validate examples/tiny.yaml`: 0.3 s wall and 0.2 s CPU are the limits.

python benchmarks/validate.py [--runs 11] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from processes import measure

LIMIT_WALL_S, LIMIT_CPU_S = 0.3, 0.2
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    launcher = Path(sys.executable).with_name("launcher")
    argv = [str(launcher), "validate", str(ROOT / "examples/tiny.yaml")]
    # Programs have their byte code; a shell that forbids writing it would measure the compiler.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    measure(argv)  # the first run reads files from disk and writes byte code
    costs = [measure(argv) for _ in range(args.runs)]
    result = {
        "runs": args.runs,
        "exit_codes": sorted({cost.exit_code for cost in costs}),
        "wall_s_median": round(statistics.median(cost.wall_s for cost in costs), 3),
        "cpu_s_median": round(statistics.median(cost.cpu_s for cost in costs), 3),
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"validate, median of {args.runs}: wall {result['wall_s_median']} s (limit {LIMIT_WALL_S}), "
            f"CPU {result['cpu_s_median']} s (limit {LIMIT_CPU_S})"
        )
    good = result["exit_codes"] == [0] and result["wall_s_median"] <= LIMIT_WALL_S and result["cpu_s_median"] <= LIMIT_CPU_S
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
