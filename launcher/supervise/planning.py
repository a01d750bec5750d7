"""(LoadedJob, this machine) -> Plan: the part of the line that validate, plan, render and run share. DO, only looking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

from launcher.backends.registry import load_backend
from launcher.errors import LauncherError, Problem
from launcher.plan.away import away_machine, named_gpu, refuse_other_machine, refuse_untrained
from launcher.plan.cost.price import Prices
from launcher.plan.cost.rates import Rates, catalogue_rates
from launcher.plan.gpus import GPUS, gpu_named
from launcher.plan.make import check_plan, make_plan
from launcher.plan.plan import Machine, Plan
from launcher.plan.shape import ModelShape
from launcher.spec.gpu import GpuSpec
from launcher.spec.hosts import hosts_of
from launcher.spec.job import JobSpec
from launcher.spec.load import LoadedJob
from launcher.spec.prices import read_prices
from launcher.spec.wording import nearest
from launcher.supervise.blueprints import Unknown, kept_shapes
from launcher.supervise.calibration import rates_here
from launcher.supervise.facts import (
    Remote,
    asked_slots,
    coming_nodes,
    detect_machine,
    find_shape,
    hosts_not_asked,
    tells_its_nodes,
)

Fact = TypeVar("Fact")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finders:
    """The two facts that a plan is made of, still to be looked for."""

    machine: Callable[[], Machine]
    shape: Callable[[], ModelShape]


def plan_of(loaded: LoadedJob, *, runs_root: Path, unknown: Unknown | None = None, remote: Remote | None = None) -> Plan:
    """The plan of every stage, on this machine or on the GPUs or pods that the job tells. Errors as in plan_here."""
    return _made(loaded, _finders(loaded, runs_root, unknown, remote), runs_root, make_plan)


def check(loaded: LoadedJob, *, runs_root: Path) -> None:
    """LauncherError exactly where plan_of has one that asks and starts nobody."""
    _made(loaded, _finders(loaded, runs_root, None, None), runs_root, check_plan)


def _finders(loaded: LoadedJob, runs_root: Path, unknown: Unknown | None, remote: Remote | None) -> Finders:
    cluster, shapes = loaded.job.cluster, unknown or kept_shapes(runs_root)
    if tells_its_nodes(cluster):
        return Finders(machine=lambda: coming_nodes(cluster), shape=lambda: _trained_shape(loaded.job, shapes))
    if cluster.gpu is None:
        return _finders_here(loaded, runs_root, 0, unknown, remote)
    gpu, counted = cluster.gpu, cluster.slots or cluster.hostfile

    def machine() -> Machine:
        if cluster.backend == "ssh" and (cluster.hosts or cluster.hostfile):
            hosts = hosts_of(cluster)
            return away_machine(gpu, slots=len(hosts[0].devices), nodes=len(hosts))
        slots = asked_slots(cluster, num_gpus=0) if counted else None
        return away_machine(gpu, slots=slots, nodes=cluster.nodes or 1)

    return Finders(machine=machine, shape=lambda: find_shape(loaded.job, shapes))


def plan_here(
    loaded: LoadedJob,
    *,
    runs_root: Path,
    written_bytes: int = 0,
    unknown: Unknown | None = None,
    remote: Remote | None = None,
) -> Plan:
    """The plan on this machine or on the job's hosts. LauncherError with everything that stands against it, at its place.

    `unknown`: for a family that no table has; None takes what was measured before, and starts nothing. `remote`: asks the
    hosts of backend ssh; None refuses to (E423).
    """
    return _made(loaded, _finders_here(loaded, runs_root, written_bytes, unknown, remote), runs_root, make_plan)


def _finders_here(
    loaded: LoadedJob, runs_root: Path, written_bytes: int, unknown: Unknown | None, remote: Remote | None
) -> Finders:
    job = loaded.job

    def machine() -> Machine:
        found = detect_machine(job, runs_root=runs_root, written_bytes=written_bytes, remote=remote or hosts_not_asked)
        refuse_other_machine(job.cluster, found)
        return found

    def shape() -> ModelShape:
        found = find_shape(job, unknown or kept_shapes(runs_root))
        if job.cluster.gpu is not None:
            refuse_untrained(found)
        return found

    return Finders(machine=machine, shape=shape)


def _trained_shape(job: JobSpec, unknown: Unknown) -> ModelShape:
    found = find_shape(job, unknown)
    refuse_untrained(found)
    return found


def _made(loaded: LoadedJob, finders: Finders, runs_root: Path, make: Callable[..., Made]) -> Made:
    """What `make_plan` or `check_plan` gives. LauncherError with what stands against it and against each of its facts."""
    job, problems = loaded.job, _backend_problems(loaded.job)
    machine, shape = _fact(finders.machine, problems), _fact(finders.shape, problems)
    made = None
    if machine is not None and shape is not None:
        rates = _fact(lambda: rates_of(job, machine, runs_root), problems) or catalogue_rates(machine)
        made = _fact(lambda: make(job, machine=machine, shape=shape, places=loaded.places, rates=rates), problems)
    if problems:
        raise LauncherError(loaded.places.located(problem) for problem in problems)
    return cast(Made, made)


def rates_of(job: JobSpec, machine: Machine, runs_root: Path) -> Rates:
    """How fast and how dear the machine is: the job's numbers, what was measured, or the catalogue's; and the job's prices.

    LauncherError E416 where a file of what was measured is damaged.
    """
    prices = _prices(job)
    if isinstance(job.cluster.gpu, GpuSpec):
        return catalogue_rates(machine, gpu=named_gpu(job.cluster.gpu), prices=prices)
    return rates_here(catalogue_rates(machine, prices=prices), machine, runs_root)


def _prices(job: JobSpec) -> Prices:
    """LauncherError E121 for a price of a GPU that nobody knows: it would have no effect."""
    if job.cluster.prices is None:
        return Prices()
    prices = Prices(**dict(read_prices(Path(job.cluster.prices))))
    own = {job.cluster.gpu.name} if isinstance(job.cluster.gpu, GpuSpec) else set()
    meant = {name: _priced(name, own) for name in prices.gpu_hour}
    unknown = [name for name, gpu in meant.items() if gpu is None]
    if unknown:
        raise LauncherError(_unknown_price(job.cluster.prices, name) for name in unknown)
    return replace(prices, gpu_hour={str(gpu): prices.gpu_hour[name] for name, gpu in meant.items()})


def _priced(name: str, own: set[str]) -> str | None:
    """The GPU of a price: the job's own, or the catalogue's by any name that cluster.gpu takes."""
    found = gpu_named(name)
    return name if name in own else found.name if found else None


def _unknown_price(file: str, name: str) -> Problem:
    near = nearest(name, GPUS)
    hint = f"did you mean {near}?" if near else f"use one of {', '.join(GPUS)}"
    return Problem(code="E121", where=file, what=f"gpu_hour.{name}: is not in the catalogue of GPUs", hint=hint)


def _backend_problems(job: JobSpec) -> list[Problem]:
    return load_backend(job.cluster.backend).find_problems(job)


def _fact(find: Callable[[], Fact], problems: list[Problem]) -> Fact | None:
    """What `find` gives; where it cannot, its problems are kept and the others still looked for."""
    try:
        return find()
    except LauncherError as error:
        problems.extend(error.problems)
        return None
