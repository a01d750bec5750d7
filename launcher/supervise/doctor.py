"""(cluster, job or none) -> Checkup: asks every host, or this machine, and judges what it heard. DO, only looking."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.backends.registry import Fleets, load_backend
from launcher.errors import LauncherError, Problem
from launcher.hosts.checks.ask import examine
from launcher.hosts.checks.checkup import Checkup, checkup_of_hosts
from launcher.hosts.checks.fitness import host_symptoms
from launcher.hosts.checks.needs import Needs, paths_on_hosts, planned_needs
from launcher.hosts.checks.share import sharing
from launcher.hosts.checks.symptom import Symptom
from launcher.hosts.machine.facts import HERE, Examined, HostFacts
from launcher.hosts.machine.look import look
from launcher.plan.plan import Plan
from launcher.rundir.folder import RunDir
from launcher.spec.cluster import ClusterSpec
from launcher.spec.hosts import hosts_of
from launcher.spec.job import JobSpec
from launcher.supervise.clusters import agents
from launcher.supervise.lock import find_owner

OF_NO_HOST = ""
_TOLD_BY_PREFLIGHT = frozenset(("E407", "E409", "E410"))


def is_remote(cluster: ClusterSpec) -> bool:
    """Whether its ranks are started on hosts that are reached over a network."""
    return isinstance(load_backend(cluster.backend), Fleets)


def check_hosts(
    cluster: ClusterSpec, needs: Needs, *, folder: Path, paths: Sequence[tuple[str, str]] = (), own: Collection[str] = ()
) -> Checkup:
    """Every host of the job, all at once. `own`: tokens of runs whose processes on the hosts are no leftovers."""
    hosts, folder = hosts_of(cluster), Path(os.path.realpath(folder))
    names = [host.host for host in hosts]
    here = look(HERE, folder=folder)
    with sharing(folder) as share:
        found = examine(agents(cluster, hosts), folder=folder, paths=paths, share=share)
        seen = {number for number, host in enumerate(names) if host in found.facts and found.facts[host].share == "seen"}
        unseen = {names[number] for number in share.missing(seen)} if share else set()
    running = {*own, *_controlled(found)}
    return checkup_of_hosts(names, found, needs, here, folder=str(folder), unseen=unseen, running=running)


def check_hosts_for(job: JobSpec, plan: Plan, *, folder: Path) -> Checkup:
    """The hosts of a job whose plan is made. Its own processes are ended by the fleet, before it starts new ones."""
    own = (os.path.realpath(folder),)
    return check_hosts(job.cluster, planned_needs(job, plan), folder=folder, paths=paths_on_hosts(job), own=own)


def check_here(needs: Needs, problems: Sequence[Problem], *, folder: Path) -> Checkup:
    """This machine alone. `problems`: what preflight has found, which judges packages and memory itself."""
    facts = look(HERE, folder=folder)
    found = Examined(facts={HERE: facts})
    symptoms = host_symptoms(facts, needs, running=_controlled(found))
    kept = [one for one in symptoms if one.problem.code not in _TOLD_BY_PREFLIGHT]
    kept += [Symptom(host=HERE, problem=problem) for problem in problems]
    return Checkup(hosts=(HERE,), found=found, symptoms=()).with_symptoms(kept)


def check_node(job: JobSpec, plan: Plan, facts: HostFacts, *, node: int, folder: Path) -> list[Symptom]:
    """What is odd about this node, which has come by itself. LauncherError with all that stops it.

    Memory is judged by node 0's controller, once an earlier attempt's ranks have been ended; where such ranks are still alive
    here, by nobody: they end when the node is called. Whether somebody controls other runs' processes does not show from here.
    """
    needs = planned_needs(job, plan)
    if not node or any(run.token == str(folder) for run in facts.left):
        needs = replace(needs, host_bytes=0, gpu_bytes=0)
    found = [_of_node(one, node) for one in host_symptoms(replace(facts, left=()), needs)]
    if stops := [one.problem for one in found if one.stops]:
        raise LauncherError(stops)
    return found


def _of_node(one: Symptom, node: int) -> Symptom:
    """Among other nodes, `this machine` says nothing."""
    host = f"node {node}"
    return replace(one, host=host, problem=replace(one.problem, where=one.problem.where.replace(HERE, host)))


def symptoms_of(problems: Iterable[Problem], *, hosts: Collection[str] = ()) -> list[Symptom]:
    """Of the host where it is; of none where it is of a plan, of the ranks together, or of this machine."""
    return [Symptom(host=problem.where if problem.where in hosts else OF_NO_HOST, problem=problem) for problem in problems]


def _controlled(found: Examined) -> set[str]:
    """Tokens of the runs that are alive on some host and controlled by somebody, as far as their folders are seen here."""
    tokens = {run.token for facts in found.facts.values() for run in facts.left}
    return {token for token in tokens if find_owner(RunDir(Path(token))) is not None}
