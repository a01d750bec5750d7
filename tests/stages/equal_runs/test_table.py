"""Every layout trains what one plain PyTorch process trains: losses and gradient norms of each step, held-out figures, folder.

`make test-matrix` runs the whole table and writes benchmarks/results/equal_runs.json.
"""

from __future__ import annotations

import time

import pytest

from tests.stages.equal_runs.compare import ALLOWED, differences, train_case
from tests.stages.equal_runs.table import ALL, CLIPS, FEW, NUM_STEPS, case

pytestmark = pytest.mark.ranks
CASES = [pytest.param(each, id=each.name, marks=() if each in FEW else pytest.mark.matrix) for each in ALL]


@pytest.mark.parametrize("each", CASES)
def test_a_layout_changes_neither_curves_nor_the_folder(families, plain, results, each):
    yardstick = plain(each)
    started = time.monotonic()
    run = train_case(families, each)
    seconds = time.monotonic() - started

    found = differences(run, each, yardstick)
    assert not found.beyond(ALLOWED[each.precision]), found
    results.add(each, found, seconds)  # only what was proved


@pytest.mark.parametrize(("optimizer", "kind"), [(optimizer, kind) for optimizer in CLIPS for kind in CLIPS[optimizer]])
def test_the_limit_of_the_gradient_norm_is_crossed_in_some_steps_and_not_in_others(plain, optimizer, kind):
    each = case(kind=kind, optimizer=optimizer)
    norms = plain(each).norms

    assert len(norms) == NUM_STEPS
    assert min(norms) < each.clip < max(norms)
