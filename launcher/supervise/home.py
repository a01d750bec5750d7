"""What an earlier attempt left on disks of its hosts alone -> the run folder, before anything is decided about the stage. DO.

A controller that was killed, or a host that was lost, leaves checkpoints there that are better than those here.
"""

from __future__ import annotations

import asyncio

from launcher.backends.registry import Fleets, load_backend
from launcher.errors import LauncherError, Problem
from launcher.hosts.files.cargo import arrive, read_away
from launcher.hosts.files.freight import fetch
from launcher.rundir.folder import RunDir
from launcher.supervise.create import Planned
from launcher.supervise.journal import Journal
from launcher.units import bytes_text


def bring_home(run: RunDir, stage: str, planned: Planned, journal: Journal) -> None:
    """LauncherError E417-E420, E513 where a host that still belongs to the job does not give what it has."""
    folder, cluster = run.stage(stage), planned.job.cluster
    away, backend = read_away(folder), load_backend(cluster.backend)
    if away is None:
        return
    hosts = planned.plan.machine.hosts if isinstance(backend, Fleets) else ()
    agents = {host: backend.agent_argv(cluster, host) for host in hosts} if isinstance(backend, Fleets) else {}
    fetched = asyncio.run(fetch(agents, run, stage, away))
    for host, got in fetched.hosts.items():
        if not isinstance(got, Problem):
            journal.event("host.fetched", stage=stage, host=host, files=got.files, bytes=got.num_bytes)
            journal.say(f"{stage}: fetched {got.files} files, {bytes_text(got.num_bytes)}, of the last attempt from {host}")
    if fetched.problems:
        raise LauncherError(fetched.problems)
    if fetched.complete:
        arrive(folder, away)
    elif left := [host for host in away.others if host not in agents]:
        journal.say(f"{stage}: what the last attempt left on {', '.join(left)} is not asked for: no longer in the job")
