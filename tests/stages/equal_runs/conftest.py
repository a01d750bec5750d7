"""One world for the whole folder: rows, tokenizer, a tiny model of each family; and the plain run of each training, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stages import runs
from tests.stages.equal_runs.compare import plain_curves
from tests.stages.equal_runs.models import import_families, write_models
from tests.stages.equal_runs.reference import Curves
from tests.stages.equal_runs.results import Results
from tests.stages.equal_runs.table import Case
from tests.stages.harness import preload, run_ranks


@pytest.fixture(scope="package")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with models/NAME beside the rows."""
    preload()
    import_families()
    folder = runs.make_world(tmp_path_factory.mktemp("families"))
    run_ranks(write_models, folder / "models", world=1)
    return folder


@pytest.fixture(scope="package")
def plain(families: Path) -> Callable[[Case], Curves]:
    """The plain run that a case must equal."""
    known: dict[Case, Curves] = {}

    def of(case: Case) -> Curves:
        return known.get(case.plain()) or known.setdefault(case.plain(), plain_curves(families, case.plain()))

    return of


@pytest.fixture(scope="package")
def results() -> Iterator[Results]:
    """Written where EQUAL_RUNS names a file, also when cases fail."""
    kept = Results()
    yield kept
    if os.environ.get("EQUAL_RUNS"):
        kept.write(Path(os.environ["EQUAL_RUNS"]))
