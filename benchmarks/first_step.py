"""Launch to first optimizer step: ours against a bare `deepspeed` script with the same model, rows and DeepSpeed config.

python benchmarks/first_step.py [--pairs 3] [--json]

One run folder is rendered and prepared; then the two commands start in turn, A B A B …, and each notes when its first optimizer
step is done. Ours also measures held-out rows before training: one row here, so that only the start is compared. The bare
script has the environment that a user's shell gives it; `tuned` is the same script
with what launcher sets for CPU ranks (no torch compiler).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_RATIO = 1.1
ROOT = Path(__file__).resolve().parent.parent
FEW = ["--set", "stages.pretrain.steps=2", "--set", "stages.pretrain.eval_rows=1"]


def commands(run: Path) -> dict[str, list[str]]:
    """Stage name -> argv, as rendered/commands.sh has them."""
    found, name = {}, ""
    for line in (run / "rendered/commands.sh").read_text().splitlines():
        if line.startswith("# "):
            name = line[2:]
        elif line.startswith("env "):
            found[name] = shlex.split(line)
    return found


def start_to_mark(argv: list[str], read_mark: object, log: Path) -> float:
    """Seconds from the start of `argv` to the moment that read_mark() finds afterwards."""
    started = time.time()
    with log.open("ab") as output:
        subprocess.run(argv, stdout=output, stderr=subprocess.STDOUT, check=True)
    return read_mark() - started


def ours_mark(run: Path) -> float:
    lines = (run / "stages/pretrain/metrics.jsonl").read_text().splitlines()
    return next(line["t"] for line in map(json.loads, lines) if line["step"] == 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-first-step-"))
    run, log, mark = folder / "run", folder / "log.txt", folder / "mark"
    launcher = Path(sys.executable).with_name("launcher")
    subprocess.run([launcher, "render", ROOT / "examples/tiny.yaml", "-o", run, *FEW], check=True, stdout=subprocess.DEVNULL)
    argv = commands(run)
    with log.open("ab") as output:
        subprocess.run(argv["prepare"], stdout=output, stderr=subprocess.STDOUT, check=True)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    ours = argv["pretrain"]
    module = ours.index("--module")
    tuned = [*ours[:module], str(ROOT / "benchmarks/bare_deepspeed.py"), str(run), "pretrain", str(mark)]
    bare = [word for word in tuned if not word.startswith("TORCHDYNAMO_DISABLE=")]
    seconds: dict[str, list[float]] = {"ours": [], "bare": [], "tuned": []}
    for _ in range(args.pairs):
        for leftover in ("metrics.jsonl", "artifact", "done", "checkpoints"):
            path = run / "stages/pretrain" / leftover
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        seconds["ours"].append(start_to_mark(ours, lambda: ours_mark(run), log))
        for name, words in (("bare", bare), ("tuned", tuned)):
            seconds[name].append(start_to_mark(words, lambda: float(mark.read_text()), log))
    ratios = {name: [a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)] for name in ("bare", "tuned")}
    result = {
        "pairs": args.pairs,
        "ours_s": round(statistics.median(seconds["ours"]), 2),
        "bare_s": round(statistics.median(seconds["bare"]), 2),
        "tuned_s": round(statistics.median(seconds["tuned"]), 2),
        "ratio": round(statistics.median(ratios["bare"]), 3),
        "ratio_tuned": round(statistics.median(ratios["tuned"]), 3),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result) if args.json else f"{result} (limit {LIMIT_RATIO})")
    shutil.rmtree(folder)
    return 0 if result["ratio"] <= LIMIT_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
