"""(LoadedJob, this machine) -> Plan: the part of the line that validate, plan, render and run share. DO, only looking."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from launcher.backends.registry import find_backend_problems, load_backend
from launcher.errors import LauncherError, Problem
from launcher.plan.away import away_machine, named_gpu, refuse_other_machine, refuse_untrained
from launcher.plan.cost.price import Prices
from launcher.plan.cost.rates import Rates, catalogue_rates
from launcher.plan.make import make_plan
from launcher.plan.plan import Machine, Plan
from launcher.plan.shape import ModelShape
from launcher.spec.gpu import GpuSpec
from launcher.spec.job import JobSpec
from launcher.spec.load import LoadedJob
from launcher.spec.prices import read_prices
from launcher.supervise.facts import asked_slots, detect_machine, find_shape

Fact = TypeVar("Fact")


def plan_of(loaded: LoadedJob, *, runs_root: Path) -> Plan:
    """The plan of every stage, on this machine or on the GPUs that cluster.gpu tells to plan for. Errors as in plan_here."""
    cluster = loaded.job.cluster
    if cluster.gpu is None:
        return plan_here(loaded, runs_root=runs_root)
    gpu, counted = cluster.gpu, cluster.slots or cluster.hostfile

    def machine() -> Machine:
        slots = asked_slots(cluster, num_gpus=0) if counted else None
        return away_machine(gpu, slots=slots, nodes=cluster.nodes or 1)

    return _plan(loaded, machine, lambda: find_shape(loaded.job))


def plan_here(loaded: LoadedJob, *, runs_root: Path, written_bytes: int = 0) -> Plan:
    """The plan on this machine. LauncherError with everything that stands against it, at its place in the job file."""
    job = loaded.job

    def machine() -> Machine:
        found = detect_machine(job, runs_root=runs_root, written_bytes=written_bytes)
        refuse_other_machine(job.cluster, found)
        return found

    def shape() -> ModelShape:
        found = find_shape(job)
        if job.cluster.gpu is not None:
            refuse_untrained(found)
        return found

    return _plan(loaded, machine, shape)


def _plan(loaded: LoadedJob, find_machine: Callable[[], Machine], shape_of: Callable[[], ModelShape]) -> Plan:
    job, problems = loaded.job, _backend_problems(loaded.job)
    machine = _fact(find_machine, problems)
    shape = _fact(shape_of, problems)
    plan = None
    if machine is not None and shape is not None:
        rates = rates_of(job, machine)
        plan = _fact(lambda: make_plan(job, machine=machine, shape=shape, places=loaded.places, rates=rates), problems)
    if problems or plan is None:
        raise LauncherError(loaded.places.located(problem) for problem in problems)
    return plan


def rates_of(job: JobSpec, machine: Machine) -> Rates:
    """How fast and how dear the machine is: the catalogue's numbers or the job's, and the prices that it names."""
    gpu = named_gpu(job.cluster.gpu) if isinstance(job.cluster.gpu, GpuSpec) else None
    prices = Prices(**dict(read_prices(Path(job.cluster.prices)))) if job.cluster.prices else Prices()
    return catalogue_rates(machine, gpu=gpu, prices=prices)


def _backend_problems(job: JobSpec) -> list[Problem]:
    return find_backend_problems(job.cluster.backend) or load_backend(job.cluster.backend).find_problems(job)


def _fact(find: Callable[[], Fact], problems: list[Problem]) -> Fact | None:
    """What `find` gives; where it cannot, its problems are kept and the others still looked for."""
    try:
        return find()
    except LauncherError as error:
        problems.extend(error.problems)
        return None
