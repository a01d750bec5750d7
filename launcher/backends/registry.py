"""Backend name -> its module, from a table, imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from launcher.backends.fleet_order import FleetOrder
from launcher.backends.request import LaunchRequest
from launcher.errors import Problem
from launcher.plan.plan import Machine, Plan
from launcher.rundir.folder import RunDir
from launcher.spec.cluster import COMING, ClusterSpec
from launcher.spec.job import JobSpec

BACKENDS = {name: f"launcher.backends.{name}" for name in ("local", "ssh", *COMING)}
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


@runtime_checkable
class Starts(Renders, Protocol):
    """What a backend offers beside that where `run` has the nodes started: a script of what was rendered."""

    HAS_QUEUE: bool

    def script(self, run: RunDir) -> Path: ...

    def is_queued(self, environ: Mapping[str, str]) -> bool: ...

    def program(self, environ: Mapping[str, str]) -> str: ...

    def num_nodes(self, environ: Mapping[str, str]) -> int | None: ...


class Hub(Protocol):
    def fetch_json(self, model_id: str, name: str, revision: str | None) -> dict[str, object]: ...


def load_backend(name: str) -> Backend:
    """`name`: one that the job file takes."""
    return cast(Backend, importlib.import_module(BACKENDS[name]))


def load_hub() -> Hub:
    return cast(Hub, importlib.import_module(_HUB))
