"""The embedded default through all five stages, measured from outside: wall, CPU and memory of every process together.

python benchmarks/demo.py [--runs-dir DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from processes import measure

LIMIT_WALL_S, LIMIT_PSS_BYTES = 360.0, 4 * 1024**3
ROOT = Path(__file__).resolve().parent.parent


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
        }
        print(json.dumps(result) if args.json else f"{log.read_text()[-3000:]}\n{result}")
    return 0 if cost.wall_s <= LIMIT_WALL_S and cost.pss_peak_bytes <= LIMIT_PSS_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
