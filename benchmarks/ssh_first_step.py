"""Launch to first optimizer step over ssh against the same on one machine: two hosts of a rank, one host of two. Root on Linux.

python benchmarks/ssh_first_step.py [--pairs 5] [--json FILE]

The hosts are Linux namespaces of this machine (CONTRIBUTING.md), so both ways have the same cores, files and byte code. One job
runs over ssh and locally in turn, A B A B …, from the same third host. A run is timed twice: from the start of `launcher run`
(preflight of the hosts and prepare count) and from the launch of the stage, each to the end of the first optimizer step. Ranks
have one thread each both ways, and one held-out row, because only the start is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.doctor import cpu  # noqa: E402
from launcher.rundir.folder import RunDir  # noqa: E402
from tests.cluster.remote import JOB, STAGE, Remote  # noqa: E402
from tests.cluster.world import Cluster  # noqa: E402

LIMIT_RATIO = 1.3
PARTS = ("run", "stage")
STAGES = [{**STAGE, "kind": "pretrain", "steps": 2, "eval_rows": 1}]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", type=Path)
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder, Cluster(hosts=2, login=True) as cluster:
        remote = Remote(cluster, Path(folder))
        remote.write_job(STAGES, env=ONE_THREAD)
        near = {**JOB, "name": "near", "cluster": {"slots": 2, "env": ONE_THREAD}, "stages": STAGES}
        (remote.folder / "near.yaml").write_text(json.dumps(near))
        measured(remote, "job.yaml")  # writes byte code
        pairs = []
        for _ in range(args.pairs):
            pairs.append({"load": round(os.getloadavg()[0], 1), "ssh": measured(remote, "job.yaml")})
            pairs[-1]["local"] = measured(remote, "near.yaml")
            print(json.dumps(pairs[-1]), flush=True)
    medians = {way: {part: median(pair[way][part] for pair in pairs) for part in PARTS} for way in ("ssh", "local")}
    ratios = {part: round(medians["ssh"][part] / medians["local"][part], 3) for part in PARTS}
    result = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {"cores": os.cpu_count(), "cpu": cpu(), "kernel": platform.release(), "python": platform.python_version()},
        "limit_ratio": LIMIT_RATIO,
        "ratios_of_medians": ratios,
        "median_s": medians,
        "pairs": pairs,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    for part, text in zip(PARTS, ("`launcher run`", "the stage's launch"), strict=True):
        ssh_s, local_s = medians["ssh"][part], medians["local"][part]
        print(f"{text} to first step: ssh {ssh_s} s, local {local_s} s, ratio {ratios[part]} (limit {LIMIT_RATIO})")
    return 0 if max(ratios.values()) <= LIMIT_RATIO else 1


def measured(remote: Remote, job: str) -> dict[str, float]:
    """Seconds of one run to its first step: `run` from the command's start, `stage` from the stage's launch."""
    began_s = time.time()
    code, _, err = remote("run", job)
    if code != 0:
        raise SystemExit(f"exit code {code}: {err}")
    name = "near" if job == "near.yaml" else str(JOB["name"])
    run = RunDir(max((remote.runs() / name).iterdir(), key=lambda path: path.stat().st_mtime_ns))
    events = map(json.loads, run.events.read_text().splitlines())
    launched_s = next(event["t"] for event in events if event["kind"] == "stage.launched")
    lines = map(json.loads, run.stage("pretrain").metrics.read_text().splitlines())
    first_s = next(line["t"] for line in lines if line["step"] == 1)
    return {"run": round(first_s - began_s, 2), "stage": round(first_s - launched_s, 2)}


def median(values: object) -> float:
    return round(statistics.median(values), 2)  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.exit(main())
