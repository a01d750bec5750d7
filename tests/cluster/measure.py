"""What the test cluster costs: `python -m tests.cluster.measure [HOSTS…]`. By hand; figures are in CONTRIBUTING.md."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.cluster.slurm import slurm
from tests.cluster.world import LOGIN, Cluster


def main(sizes: Sequence[int]) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for hosts in sizes:
        cluster = Cluster(hosts=hosts, login=True)
        with took(f"{hosts} hosts and login up"):
            cluster.__enter__()
        nodes = " ".join(cluster.nodes)
        with took(f"{hosts} x ssh node true at once"):
            cluster.out(LOGIN, ["sh", "-c", f"for node in {nodes}; do ssh $node true & done; wait"])
        with took(f"pdsh hostname on {hosts}"):
            cluster.out(LOGIN, ["pdsh", "-R", "ssh", "-f", str(hosts), "-w", ",".join(cluster.nodes), "hostname"])
        if hosts <= 8:
            with took("slurm up, srun on all, down"), slurm(cluster):
                cluster.out(LOGIN, ["srun", f"-N{hosts}", "hostname"])
        with took(f"{hosts} hosts and login down"):
            cluster.close()


@contextmanager
def took(what: str) -> Iterator[None]:
    """Wall seconds, and CPU seconds of us and of what we have waited for meanwhile: hosts that are up are not in it."""
    before_s, cpu_before_s = time.monotonic(), _cpu_s()
    yield
    print(f"{what:34} {time.monotonic() - before_s:6.2f} s {_cpu_s() - cpu_before_s:6.2f} cpu-s", flush=True)


def _cpu_s() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [2, 4, 64])
