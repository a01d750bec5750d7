"""(job, plan, run folder) -> what starts ranks on many hosts over ssh. Pure.

The controller starts `launcher.hosts fleet` here, which opens one ssh connection to each host. The remote command is the same
fixed text for every job; all that belongs to the job goes over stdin as JSON, where no shell reads it.
"""

from __future__ import annotations

import sys

from launcher.backends import local
from launcher.backends.fleet_order import FleetOrder, launch_argv
from launcher.backends.request import TOKEN, LaunchRequest
from launcher.plan.plan import Machine, Plan
from launcher.rundir.folder import RunDir
from launcher.spec.cluster import ClusterSpec
from launcher.spec.job import JobSpec

# BatchMode: nothing asks for a password in the night. The alive options end a connection whose host has gone, in 6 s.
_OPTIONS = (
    *("BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10", "ConnectionAttempts=1"),
    *("ServerAliveInterval=2", "ServerAliveCountMax=3", "ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no"),
    *("ControlMaster=no", "ControlPath=none", "RequestTTY=no", "LogLevel=ERROR", "Compression=no"),
)

FLEET_GRACE_S = 30.0  # the hosts' own grace, the way there and back, and what SIGKILL takes

find_problems = local.find_problems
prepare_request = local.prepare_request


def agent_argv(cluster: ClusterSpec, host: str) -> tuple[str, ...]:
    """Starts an agent on `host` and is its stdin and stdout."""
    options = [word for option in _OPTIONS for word in ("-o", option)]
    config = ["-F", cluster.ssh_config] if cluster.ssh_config else []
    return ("ssh", *config, *options, "--", host, f"exec {cluster.python or sys.executable} -P -m launcher.hosts agent")


def hostfile_text(machine: Machine) -> str:
    """DeepSpeed's hostfile, for those who start the ranks without this program."""
    return "".join(f"{host} slots={machine.slots}\n" for host in machine.hosts)


def stage_request(job: JobSpec, plan: Plan, run: RunDir, stage: str, *, port: int) -> LaunchRequest:
    """The fleet of one stage. `port` is not used: the first host finds one that is free there."""
    argv = (sys.executable, "-u", "-P", "-m", "launcher.hosts", "fleet", str(run.path), stage)
    env = ((TOKEN, str(run.path)),)
    return LaunchRequest(stage=stage, argv=argv, env=env, world=plan.stage(stage).world, grace_s=FLEET_GRACE_S)


def fleet_order(job: JobSpec, plan: Plan, run: RunDir, stage: str) -> FleetOrder:
    """What the fleet reads from the run folder. Names of secrets, never their values."""
    machine, cluster = plan.machine, job.cluster
    world = plan.stage(stage).world
    hosts = machine.hosts[: -(-world // machine.slots)]
    devices = machine.devices or tuple(range(machine.slots))
    return FleetOrder(
        stage=stage,
        hosts=hosts,
        slots=world // len(hosts),
        agents=tuple(agent_argv(cluster, host) for host in hosts),
        argv=launch_argv(cluster.python or sys.executable, hosts, devices[: world // len(hosts)], run, stage),
        env=dict(local.rank_env(job, machine, run, ranks=world // len(hosts))),
        secrets=cluster.secrets,
    )
