"""Backend name -> its module, from a table, imported when it is asked for. Kinds that are not built yet are refused here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

from launcher.backends.fleet_order import FleetOrder
from launcher.backends.request import LaunchRequest
from launcher.errors import LauncherError, Problem
from launcher.plan.plan import Machine, Plan
from launcher.rundir.folder import RunDir
from launcher.spec.cluster import RENDERED, ClusterSpec
from launcher.spec.job import JobSpec

BACKENDS = {name: f"launcher.backends.{name}" for name in ("local", "ssh", *RENDERED)}
_HUB = "launcher.backends.hub"


class Backend(Protocol):
    """What every backend's module offers, all of it pure."""

    def find_problems(self, job: JobSpec) -> list[Problem]: ...

    def hostfile_text(self, machine: Machine) -> str: ...

    def prepare_request(self, job: JobSpec, run: RunDir) -> LaunchRequest: ...

    def stage_request(self, job: JobSpec, plan: Plan, run: RunDir, stage: str, *, port: int) -> LaunchRequest: ...

    def meet_request(self, cluster: ClusterSpec, machine: Machine, run: RunDir, *, port: int) -> LaunchRequest: ...

    def calibrate_request(self, machine: Machine, run: RunDir, *, port: int, starter: int) -> LaunchRequest: ...

    def blueprint_request(self, run: RunDir) -> LaunchRequest: ...


@runtime_checkable
class Fleets(Protocol):
    """What a backend offers beside it that starts ranks on many hosts."""

    def agent_argv(self, cluster: ClusterSpec, host: str) -> tuple[str, ...]: ...

    def fleet_order(self, job: JobSpec, plan: Plan, run: RunDir, stage: str) -> FleetOrder: ...

    def meet_order(self, cluster: ClusterSpec, machine: Machine, run: RunDir) -> FleetOrder: ...


@runtime_checkable
class Scripts(Protocol):
    """What a backend offers whose stages are started in another way where this program does not start them."""

    def script(self, job: JobSpec, plan: Plan, run: RunDir, *, port: int) -> dict[str, str]: ...


@runtime_checkable
class Renders(Protocol):
    """What a backend offers whose nodes come by themselves: the files that make somebody else start them."""

    def fleet_order(self, job: JobSpec, plan: Plan, run: RunDir, stage: str) -> FleetOrder: ...

    def rendered(self, job: JobSpec, plan: Plan, run: RunDir, sealed: Mapping[str, str]) -> dict[str, str]: ...

    def next_step(self, job: JobSpec, run: RunDir) -> str: ...


class Hub(Protocol):
    def fetch_json(self, model_id: str, name: str, revision: str | None) -> dict[str, object]: ...


def find_backend_problems(name: str) -> list[Problem]:
    """Empty where ranks can be started on this kind of cluster."""
    if name in BACKENDS:
        return []
    hint = "use backend: local, which starts ranks on this machine, or ssh, which starts them on the hosts of a hostfile"
    return [Problem(code="E401", where="cluster.backend", what=f"backend {name!r} is not built yet", hint=hint)]


def load_backend(name: str) -> Backend:
    """LauncherError E401 where the kind is not built yet."""
    problems = find_backend_problems(name)
    if problems:
        raise LauncherError(problems)
    return cast(Backend, importlib.import_module(BACKENDS[name]))


def load_hub() -> Hub:
    return cast(Hub, importlib.import_module(_HUB))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))
