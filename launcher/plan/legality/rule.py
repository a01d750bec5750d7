"""Rule, what it judges and what it says. A rule is one small function and the sentences that docs/parallelism.md prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from launcher.plan.asked import Asked, parallel_of, parallel_path, world_of
from launcher.plan.plan import Machine
from launcher.plan.shape import ModelShape
from launcher.spec.job import JobSpec
from launcher.spec.places import FieldPath
from launcher.spec.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A job on a machine."""

    job: JobSpec
    machine: Machine
    shape: ModelShape

    @property
    def cpu(self) -> bool:
        return self.machine.device == "cpu"

    @property
    def world(self) -> int:
        return world_of(self.job, self.machine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One stage of a case: what a rule judges."""

    case: Case
    index: int
    stage: Stage
    asked: Asked

    @property
    def job(self) -> JobSpec:
        return self.case.job

    @property
    def shape(self) -> ModelShape:
        return self.case.shape

    @property
    def dp(self) -> int | None:
        """Replicas; None where the degrees do not divide the ranks, which has a rule of its own."""
        replicas, rest = divmod(self.case.world, self.asked.replica)
        return None if rest else replicas

    def parallel(self, *fields: str) -> FieldPath:
        """Where a field of this stage's layout is written."""
        return parallel_path(self.job, self.index, *fields)

    def of_stage(self, *fields: str) -> FieldPath:
        return ("stages", self.index, *fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What one rule says of one spot: the field, what is wrong, and the nearest thing that works."""

    path: FieldPath
    what: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`refuses`, `because`, `instead` and `proof` are for readers of the docs; `find` says it of one job with its numbers.

    A proof is the test that shows what DeepSpeed or a library does (`tests/…::test_name`), or why there is none: `arithmetic`,
    a limit of `ours: where`, or `needs CUDA: why`.
    """

    code: str
    refuses: str
    because: str
    instead: str
    find: Callable[[Spot], Iterator[Refusal]]
    proof: tuple[str, ...]


def spots_of(case: Case) -> list[Spot]:
    stages = enumerate(case.job.stages)
    return [Spot(case=case, index=index, stage=stage, asked=parallel_of(case.job, stage)) for index, stage in stages]
