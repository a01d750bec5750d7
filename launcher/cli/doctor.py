"""`launcher doctor [JOB]`: asks every host of the job at once, or this machine, and tells all that stands against a run."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from dataclasses import replace
from pathlib import Path

from launcher.backends.registry import Renders, Starts, load_backend
from launcher.cli.common import add_json, add_runs, runs_root, say, show, show_json
from launcher.errors import EXIT_CLUSTER, EXIT_DONE, LauncherError, Problem
from launcher.hosts.checks.checkup import Checkup
from launcher.hosts.checks.fitness import planned_symptoms
from launcher.hosts.checks.needs import Needs, asked_needs, paths_on_hosts, planned_needs
from launcher.plan.plan import Machine
from launcher.report.checkup import checkup_dict, checkup_text
from launcher.spec.cluster import RENDERED, ClusterSpec
from launcher.spec.hostfile import HOST
from launcher.spec.hosts import hosts_of
from launcher.spec.load import LoadedJob, open_job
from launcher.supervise import doctor, preflight
from launcher.supervise.clusters import every_slot, machine_from
from launcher.supervise.drafting import drafted_shapes
from launcher.supervise.facts import machine_here
from launcher.supervise.planning import plan_here, plan_of
from launcher.supervise.queue import check_queue
from launcher.supervise.rendezvous import meet
from launcher.supervise.stop import StopFlag, listening


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", nargs="?", type=Path, help="job file; without one, this machine or --hosts")
    sets = "change one field of JOB (repeatable)"
    parser.add_argument("--set", dest="overrides", metavar="PATH=VALUE", action="append", default=[], help=sets)
    hosts = "only these hosts of the job; without JOB, hosts to ask over ssh"
    parser.add_argument("--hosts", metavar="HOST", nargs="+", type=_host, default=[], help=hosts)
    meets = "let ranks meet and exchange something, also where something is wrong (default: where nothing stands against it)"
    parser.add_argument("--rendezvous", action=BooleanOptionalAction, default=None, help=meets)
    add_runs(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    cluster, loaded = _asked(args)
    root = runs_root(args)
    check = _check_hosts if doctor.is_remote(cluster) else _check_here
    checkup, machine = check(cluster, loaded, root)
    wanted = checkup.ready if args.rendezvous is None else args.rendezvous
    if machine is not None and wanted:
        checkup = _meet(checkup, cluster, machine, root)
    if args.json:
        show_json(checkup_dict(checkup))
    else:
        show(checkup_text(checkup))
    return EXIT_DONE if checkup.ready else EXIT_CLUSTER


def _asked(args: Namespace) -> tuple[ClusterSpec, LoadedJob | None]:
    """The cluster that is meant, and the job, whose cluster it is then."""
    if args.job is not None:
        loaded = open_job(args.job, args.overrides)
        cluster = loaded.job.cluster
        if args.hosts and not doctor.is_remote(cluster):
            what = "--hosts: the ranks of this job are started on this machine"
            raise LauncherError(Problem(code="E111", where=str(args.job), what=what, hint="leave it out, or use backend: ssh"))
        if args.hosts:
            cluster = cluster.model_copy(update={"include": "@".join(args.hosts), "exclude": None})
        return cluster, replace(loaded, job=loaded.job.model_copy(update={"cluster": cluster}))
    if args.overrides:
        what = "--set changes a job file, and none is given"
        raise LauncherError(Problem(code="E111", where="", what=what, hint="launcher doctor JOB --set PATH=VALUE"))
    return (ClusterSpec(backend="ssh", hosts=tuple(args.hosts)) if args.hosts else ClusterSpec()), None


def _check_hosts(cluster: ClusterSpec, loaded: LoadedJob | None, root: Path) -> tuple[Checkup, Machine | None]:
    """Every host, and what they are together; None where that cannot be told."""
    hosts = hosts_of(cluster)
    say(f"asking {len(hosts)} {'host' if len(hosts) == 1 else 'hosts'}")
    paths, quantized = (paths_on_hosts(loaded.job), loaded.job.model.quantize is not None) if loaded else ((), False)
    world = sum(len(host.devices) for host in hosts)
    needs = asked_needs(cluster, slots=len(hosts[0].devices), world=world, quantized=quantized)
    checkup = doctor.check_hosts(cluster, needs, folder=root, paths=paths)
    if loaded is not None:
        checkup = checkup.with_symptoms(doctor.symptoms_of(preflight.job_problems(loaded.job, writable=root)))
    if checkup.found.problems:
        return checkup, None
    try:
        facts = [checkup.found.facts[host.host] for host in hosts]
        if loaded is None:
            hosts = every_slot(hosts, facts)
        machine = machine_from(facts, hosts)
        if loaded is not None:
            roomy = replace(machine, disk_free_bytes=None)  # a plan would name one disk of all that are too small
            plan = plan_here(loaded, runs_root=root, unknown=drafted_shapes(root), remote=lambda _: roomy)
            checkup = checkup.with_symptoms(planned_symptoms(facts, planned_needs(loaded.job, plan)))
    except LauncherError as error:
        return checkup.with_symptoms(doctor.symptoms_of(error.problems, hosts=checkup.hosts)), None
    return checkup, machine


def _check_here(cluster: ClusterSpec, loaded: LoadedJob | None, root: Path) -> tuple[Checkup, Machine | None]:
    """This machine. The job's ranks, or those that a job would have without saying more."""
    machine, problems, backend = None, list[Problem](), load_backend(cluster.backend)
    try:
        if loaded is not None and isinstance(backend, Starts):
            problems += _start_problems(loaded, root)
        elif loaded is not None and cluster.backend in RENDERED:
            _check_render(loaded, root)
        else:
            machine = machine_here(cluster, runs_root=root)
            problems += _own_problems(loaded, root)
    except LauncherError as error:
        problems += error.problems
    if isinstance(backend, Renders):
        needs = Needs(slots=1)  # no rank is here: neither the nodes' network cards nor much of /dev/shm are needed
    else:
        slots = machine.slots if machine else None
        needs = asked_needs(cluster, slots=slots, world=slots or 1)
    return doctor.check_here(needs, problems, folder=root), machine


def _own_problems(loaded: LoadedJob | None, root: Path) -> list[Problem]:
    """Of a machine that has the ranks."""
    if loaded is None:
        return [*preflight.package_problems(), *preflight.write_problems(root)]
    plan = plan_here(loaded, runs_root=root, unknown=drafted_shapes(root))
    return preflight.here_problems(loaded.job, plan, writable=root)


def _check_render(loaded: LoadedJob, root: Path) -> None:
    """LauncherError where `render`, all that such a job needs of this machine, would refuse it."""
    say("the job's nodes are not asked: each looks at itself when it has come; here the job is only planned")
    plan_of(loaded, runs_root=root, unknown=drafted_shapes(root))


def _start_problems(loaded: LoadedJob, root: Path) -> list[Problem]:
    """Of a machine that only has the nodes started."""
    say("the job's nodes are not asked: each looks at itself when it has come, and node 0 compares them")
    plan = plan_here(loaded, runs_root=root, unknown=drafted_shapes(root))
    problems = preflight.outside_problems(loaded.job, plan, writable=root)
    if loaded.job.cluster.backend == "slurm":
        try:
            check_queue()
        except LauncherError as error:
            problems += error.problems
    return problems


def _meet(checkup: Checkup, cluster: ClusterSpec, machine: Machine, root: Path) -> Checkup:
    say(f"{machine.world} ranks are asked to meet")
    try:
        with listening(StopFlag()) as stop:
            return checkup.with_meeting(meet(cluster, machine, runs_root=root, stop=stop))
    except LauncherError as error:
        return checkup.with_symptoms(doctor.symptoms_of(error.problems))


def _host(text: str) -> str:
    if not re.fullmatch(HOST, text):
        raise ArgumentTypeError(f"{text!r} is not a host name or address")
    return text
