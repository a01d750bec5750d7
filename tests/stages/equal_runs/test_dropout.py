"""Dropout under tensor parallelism: the ranks of a group draw the same masks, or what they all hold would drift apart."""

from __future__ import annotations

import os
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from launcher.rundir.folder import RunDir
from launcher.train import course, handing_over
from tests.stages.equal_runs.compare import case_run, weights_of
from tests.stages.equal_runs.table import Case, case
from tests.stages.look import curve, largest_difference, train

pytestmark = pytest.mark.ranks

CASES = [case(model=model, tp=2) for model in ("gpt2 dropout", "phi dropout")]


def train_and_compare(world, each: Case) -> tuple[RunDir, float]:
    """The trained run, and the largest difference between the tensor ranks in what each of them holds whole."""
    run = case_run(world, each)
    drift = run.path / "drift.txt"

    def compared(run_dir, order, ranks, trained):
        largest = 0.0
        for piece in trained.pieces:
            if piece.cut is None:
                mine = piece.weight.detach().clone()
                theirs = [torch.empty_like(mine) for _ in range(trained.mesh.tp)]
                dist.all_gather(theirs, mine, group=trained.mesh.tp_group)
                largest = max(largest, float((theirs[0] - theirs[1]).abs().max()))
        if ranks.first:
            drift.write_text(str(largest))
        return hand_on(run_dir, order, ranks, trained)

    hand_on = handing_over.hand_on
    with mock.patch.object(handing_over, "hand_on", compared):
        train(run, each.kind, ranks=each.ranks)
    return run, float(drift.read_text())


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.model)
def test_replicated_weights_stay_the_same_on_both_ranks_and_a_seed_gives_the_same_run_again(families, plain, each):
    run, drift = train_and_compare(families, each)
    again, _ = train_and_compare(families, each)

    assert drift == 0
    assert curve(again, each.kind) == curve(run, each.kind)
    assert largest_difference(weights_of(run, each), weights_of(again, each)) == 0
    without = plain(case(model=each.model.removesuffix(" dropout")))
    assert abs(curve(run, each.kind)[0] - without.losses[0]) > 1e-4, "dropout must have been on"


def test_a_seed_of_its_own_for_each_rank_lets_them_drift_apart(families):
    """What the shared seed is for. The losses do not show it: the ranks sum them."""
    seed = torch.manual_seed
    with mock.patch.object(course.torch, "manual_seed", lambda number: seed(number + int(os.environ["RANK"]))):
        _, drift = train_and_compare(families, CASES[0])

    assert drift > 1e-4
