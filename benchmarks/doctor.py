"""`launcher doctor` over many hosts made of Linux namespaces: 64 of them in 10 s is the limit. Root on Linux (CONTRIBUTING.md).

python benchmarks/doctor.py [--hosts 64] [--runs 5] [--json FILE]

Every host runs its own sshd and its own cold Python, on the cores of this one machine: real hosts have cores of their own. The
ranks are not asked to meet, which would be 64 imports of torch on these cores.
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

from tests.cluster.remote import STAGE, Remote  # noqa: E402
from tests.cluster.world import Cluster  # noqa: E402

LIMIT_S = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", type=Path)
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder, Cluster(hosts=args.hosts, login=True) as cluster:
        remote = Remote(cluster, Path(folder))
        remote.write_job([{**STAGE, "kind": "pretrain"}])
        tries = [measured(remote, args.hosts) for _ in range(args.runs + 1)][1:]  # the first one writes byte code
    walls = [one["wall_s"] for one in tries]
    result = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {"cores": os.cpu_count(), "cpu": cpu(), "kernel": platform.release(), "python": platform.python_version()},
        "hosts": args.hosts,
        "limit_s": LIMIT_S,
        "wall_s_median": round(statistics.median(walls), 2),
        "wall_s_most": max(walls),
        "runs": tries,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    for one in tries:
        print(f"{args.hosts} hosts: wall {one['wall_s']} s, CPU of the machine {one['machine_cpu_s']} s, load {one['load']}")
    print(f"median {result['wall_s_median']} s (limit {LIMIT_S} s)")
    return 0 if result["wall_s_median"] <= LIMIT_S else 1


def measured(remote: Remote, hosts: int) -> dict[str, float]:
    """One doctor, which finds every host ready. `machine_cpu_s`: of all programs of this machine, ours or not, meanwhile."""
    load, busy_s, began_s = os.getloadavg()[0], machine_cpu_s(), time.monotonic()
    words = ("--no-rendezvous", "--json", "--set", f"batch.global={hosts}")
    code, out, err = remote("doctor", "job.yaml", *words)
    wall_s = time.monotonic() - began_s
    states = {host["state"] for host in json.loads(out)["hosts"]}
    if code != 0 or states != {"ready"}:
        raise SystemExit(f"exit code {code}, hosts are {states}: {out[:2000]} {err}")
    return {"wall_s": round(wall_s, 2), "machine_cpu_s": round(machine_cpu_s() - busy_s, 2), "load": round(load, 1)}


def machine_cpu_s() -> float:
    """Seconds that all cores together have worked since the boot."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()
    user, nice, system, _, _, irq, softirq = map(int, words[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
