"""(job, plan, run folder) -> what starts ranks on many hosts over ssh. Pure.

The controller starts `launcher.hosts fleet` here, which opens one ssh connection to each host. The remote command is the same
fixed text for every job; all that belongs to the job goes over stdin as JSON, where no shell reads it.
"""

from __future__ import annotations

import sys

from launcher.backends import local, pdsh
from launcher.backends.fleet_order import FleetOrder, launch_argv
from launcher.backends.local import MEET
from launcher.backends.request import TOKEN, LaunchRequest
from launcher.plan.plan import Machine, Plan
from launcher.rundir.folder import RunDir
from launcher.spec.cluster import ClusterSpec
from launcher.spec.job import JobSpec

# BatchMode: nothing asks for a password in the night. The alive options end a connection whose host has gone, in 6 s.
_OPTIONS = (
    *("BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=6", "ConnectionAttempts=1"),
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
    return ("ssh", *config, *options, "--", host, f"exec {_python(cluster)} -P -m launcher.hosts agent")


def hostfile_text(machine: Machine) -> str:
    """DeepSpeed's hostfile: enough slots that every GPU which is meant has its number among them."""
    slots = max((machine.slots, *(number + 1 for number in machine.devices)))
    return "".join(f"{host} slots={slots}\n" for host in machine.hosts)


def script(job: JobSpec, plan: Plan, run: RunDir, *, port: int) -> dict[str, str]:
    """What starts the stages where this program does not: DeepSpeed's own launcher."""
    orders = [fleet_order(job, plan, run, stage.name) for stage in plan.stages]
    prepare = prepare_request(job, run)
    return pdsh.script(job, plan.machine, run, orders, prepare=prepare, python=_python(job.cluster), port=port)


def stage_request(job: JobSpec, plan: Plan, run: RunDir, stage: str, *, port: int) -> LaunchRequest:
    """The fleet of one stage. `port` is not used: the first host finds one that is free there."""
    return _fleet_request(run, stage, world=plan.stage(stage).world)


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
        argv=launch_argv(_python(cluster), hosts, devices[: world // len(hosts)], ("train", str(run.path), stage)),
        env=dict(local.rank_env(cluster, machine, run, ranks=world // len(hosts))),
        secrets=cluster.secrets,
    )


def meet_request(cluster: ClusterSpec, machine: Machine, run: RunDir, *, port: int) -> LaunchRequest:
    """The fleet of ranks that only meet."""
    return _fleet_request(run, MEET, world=machine.world)


def meet_order(cluster: ClusterSpec, machine: Machine, run: RunDir) -> FleetOrder:
    """What that fleet reads. The ranks get no secret: they have no use for one."""
    words = ("meet", str(run.path), machine.device, str(machine.slots))
    return FleetOrder(
        stage=MEET,
        hosts=machine.hosts,
        slots=machine.slots,
        agents=tuple(agent_argv(cluster, host) for host in machine.hosts),
        argv=launch_argv(_python(cluster), machine.hosts, machine.devices or tuple(range(machine.slots)), words),
        env=dict(local.rank_env(cluster, machine, run, ranks=machine.slots)),
        secrets=(),
    )


def _fleet_request(run: RunDir, stage: str, *, world: int) -> LaunchRequest:
    argv = (sys.executable, "-u", "-P", "-m", "launcher.hosts", "fleet", str(run.path), stage)
    return LaunchRequest(stage=stage, argv=argv, env=((TOKEN, str(run.path)),), world=world, grace_s=FLEET_GRACE_S)


def _python(cluster: ClusterSpec) -> str:
    return cluster.python or sys.executable
