"""Real SLURM in the hosts of a cluster: `with slurm(cluster) as queue:`; then sinfo, sbatch, srun, scontrol work in every host.

munged in each host, slurmd in each node, slurmctld in node1, partition `debug`. queue.completions() has a line for each end of
a job's attempt; sacct answers with `accounts=True` alone (accounts.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.accounts import keep_accounts, open_accounts
from tests.cluster.room import FOLDER, WAIT_S, HostError
from tests.cluster.world import Cluster

CONTROLLER = "node1"
INSIDE = f"{FOLDER}/slurm"  # as the hosts see it
ETC = "/etc/slurm"
DAEMONS = ("srun", "slurmstepd", "slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged")


@dataclass(frozen=True, slots=True)
class Slurm:
    """A queue that runs. Its files, logs among them, are in `folder`."""

    cluster: Cluster
    accounts: bool = False

    @property
    def folder(self) -> Path:
        return self.cluster.folder / "slurm"

    def completions(self) -> str:
        path = self.folder / "completions.log"
        return path.read_text() if path.exists() else ""

    def boot(self, name: str) -> None:
        """Start the daemons in a host, also in one that was booted after a crash: SLURM sees it as down until then."""
        run = "/run/munge"
        self.cluster.out(name, ["mkdir", "-m", "755", run])
        files = [f"--key-file={INSIDE}/munge.key", f"--socket={run}/munge.socket.2", f"--pid-file={run}/munged.pid"]
        self._start(name, ["munged", "--force", *files, f"--seed-file={run}/seed", "--log-file=/var/log/munged.log"])
        if name == CONTROLLER:
            if self.accounts:
                open_accounts(self.cluster, name)
            self._start(name, ["slurmctld"])
            self.cluster.wait_for_port(name, 6817)
        if name in self.cluster.nodes:
            self._start(name, ["slurmd", "-N", name])
            self.cluster.wait_for_port(name, 6818)

    def forget(self) -> None:
        """Every job that has ended, as SLURM does by itself after minutes."""
        self.cluster.out(CONTROLLER, ["pkill", "-KILL", "-x", "slurmctld"])
        self._start(CONTROLLER, ["slurmctld", "-c"])
        self.cluster.wait_for_port(CONTROLLER, 6817)
        self.wait_until_idle(*self.cluster.nodes)

    def wait_until_idle(self, *names: str) -> None:
        """Also to be called before a crash: a node that crashes while it ends a job stays `completing` for a minute."""
        until = time.monotonic() + WAIT_S
        while not set(names) <= set(self.idle()):
            if time.monotonic() > until:
                logs = "\n".join(f"{path.name}: {path.read_text()[-1000:]}" for path in sorted(self.folder.glob("*.log")))
                raise HostError(f"not idle: {set(names) - set(self.idle())}\n{logs}")
            time.sleep(0.05)

    def idle(self) -> list[str]:
        rows = self.cluster.run(CONTROLLER, ["sinfo", "--noheader", "--Node", "--format=%N %T"]).stdout.splitlines()
        return [row.split()[0] for row in rows if row.split()[1] == "idle"]

    def _start(self, name: str, argv: Sequence[str]) -> None:
        self.cluster.out(name, argv, cwd="/")


@contextmanager
def slurm(
    cluster: Cluster,
    *,
    cpus: int = 2,
    gpus: int = 0,
    silent_s: int = 10,
    settings: Sequence[str] = (),
    accounts: bool = False,
) -> Iterator[Slurm]:
    """Every node claims so many CPUs and GPUs, which need not exist. `silent_s`: until a host that does not answer is down.
    `settings`: further lines of slurm.conf. `accounts`: sacct answers."""
    queue = Slurm(cluster, accounts)
    etc = queue.folder / "etc"
    etc.mkdir(parents=True)
    if accounts:
        settings = [*settings, *keep_accounts(CONTROLLER, etc)]
    (queue.folder / "munge.key").write_bytes(os.urandom(128))
    (queue.folder / "munge.key").chmod(0o600)
    (etc / "slurm.conf").write_text(configuration(cluster, cpus=cpus, gpus=gpus, silent_s=silent_s, settings=settings))
    (etc / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (etc / "gres.conf").write_text(f"Name=gpu File={INSIDE}/gpu[0-{gpus - 1}]\n" if gpus else "")
    for number in range(gpus):
        (queue.folder / f"gpu{number}").touch()  # slurmd counts the files of devices
    covered = list[str]()
    try:
        for name in cluster.names:
            cluster.overlay(name, ETC, f"{INSIDE}/etc")
            covered.append(name)
            queue.boot(name)
        queue.wait_until_idle(*cluster.nodes)
        yield queue
    finally:
        _end(queue, covered)


def _end(queue: Slurm, covered: Sequence[str]) -> None:
    """No job, no daemon; the hosts stay up."""
    cluster = queue.cluster
    up = [name for name in covered if cluster.is_up(name)]
    if CONTROLLER in up:
        cluster.run(CONTROLLER, ["sh", "-c", "timeout 5 scancel --user=root; sleep 0.2"])
    pattern = "|".join(DAEMONS)
    for name in up:
        cluster.run(name, ["pkill", "-KILL", "-x", pattern])
        cluster.uncover(name, ETC)


def configuration(cluster: Cluster, *, cpus: int, gpus: int, silent_s: int, settings: Sequence[str]) -> str:
    """slurm.conf for hosts without users, cgroups and a database."""
    gres = ["GresTypes=gpu"] if gpus else []
    has = f"CPUs={cpus} RealMemory=4000" + (f" Gres=gpu:{gpus}" if gpus else "")
    return "\n".join(
        [
            "ClusterName=test",
            f"SlurmctldHost={CONTROLLER}({cluster.address(CONTROLLER)})",
            "AuthType=auth/munge",
            "AuthInfo=cred_expire=5",  # a job that is requeued waits for this to run out: two minutes if nothing is said
            "CredType=cred/munge",
            "SlurmUser=root",
            "SlurmdUser=root",
            "MpiDefault=none",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "JobCompType=jobcomp/filetxt",
            f"JobCompLoc={INSIDE}/completions.log",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=sched_interval=2,bf_interval=2",
            f"StateSaveLocation={INSIDE}/state",
            f"SlurmdSpoolDir={INSIDE}/spool.%n",
            "SlurmdPidFile=/run/slurmd.pid",
            "SlurmctldPidFile=/run/slurmctld.pid",
            f"SlurmctldLogFile={INSIDE}/slurmctld.log",
            f"SlurmdLogFile={INSIDE}/slurmd.%n.log",
            "SlurmdParameters=config_overrides",  # the CPUs that are claimed need not exist
            "ReturnToService=2",
            f"SlurmdTimeout={silent_s}",
            "SlurmctldTimeout=10",
            "KillWait=5",
            "JobRequeue=1",
            "UnkillableStepTimeout=20",
            "MessageTimeout=5",
            "TCPTimeout=2",
            *gres,
            *settings,
            *(f"NodeName={name} NodeAddr={cluster.address(name)} {has} State=UNKNOWN" for name in cluster.nodes),
            f"PartitionName=debug Nodes={','.join(cluster.nodes)} Default=YES MaxTime=60 DefaultTime=10 State=UP",
            "",
        ]
    )
