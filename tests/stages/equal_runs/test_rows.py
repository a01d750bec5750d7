"""Rows and batches: the same for any number of ranks, also where they do not divide evenly."""

from __future__ import annotations

import pytest

from tests.stages.equal_runs.compare import case_run
from tests.stages.equal_runs.table import Case, case
from tests.stages.look import curve, held_out, train

pytestmark = pytest.mark.ranks

TOLERANCE = 5e-6


def trained(world, each: Case, **changes):
    run = case_run(world, each, **changes)
    train(run, each.kind, ranks=each.ranks)
    return run


def test_an_epoch_that_ends_inside_a_batch_is_the_same_rows_for_everybody(families):
    """96 rows in steps of 40: a sampler per epoch would cut the third step short, elsewhere for one rank than for two."""
    one = trained(families, case(kind="pretrain"), micro=40)
    two = trained(families, case(kind="pretrain", dp=2), micro=5, accum=4)

    assert curve(two, "pretrain") == pytest.approx(curve(one, "pretrain"), abs=TOLERANCE)
    assert curve(one, "pretrain", "epoch") == pytest.approx([40 / 96, 80 / 96, 120 / 96, 160 / 96])


@pytest.mark.parametrize("each", [case(dp=2), case(pp=2), case(tp=2, dp=2)], ids=lambda each: each.name)
def test_held_out_figures_do_not_depend_on_ranks_or_batch(families, plain, each):
    """All 24 rows in micro-batches of 6: no rank has as many of them as another one that are whole."""
    one, run = (trained(families, c, micro=3, stage={"steps": 1, "log_every": 1}) for c in (case(zero=0), each))

    assert held_out(run, "sft")["before/loss"] == pytest.approx(held_out(one, "sft")["before/loss"], abs=1e-6)
