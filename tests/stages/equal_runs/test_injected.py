"""The table can fail: each error that parallel training is known for, put in on purpose, is seen by the comparison.

The ranks are forked with the patch in place. What is seen is written out: a difference that only another figure shows would
mean that the one which should show it does not.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
from deepspeed.pipe import PipelineModule

from launcher.train import building, engines, sharding
from launcher.train.task import Task
from tests.stages.equal_runs.compare import ALLOWED, case_run, differences, train_case
from tests.stages.equal_runs.table import Case, case
from tests.stages.look import refused

pytestmark = pytest.mark.ranks

TIED_PIPE = case(model="llama tied", pp=2, accum=2)
TENSOR = case(tp=2)
SHARED_NORM = case(model="qwen3", tp=2)
SEQUENCE = case(sp=2, zero=3)
SEQUENCE_SGD = case(sp=2, zero=3, optimizer="sgd")


@contextmanager
def sharded_weights_unmarked():
    """DeepSpeed's norm then counts every weight on tensor rank 0 only."""

    def unmarked(*args, **kwargs):
        piece = made(*args, **kwargs)
        if piece.cut is not None:
            del piece.weight.tensor_model_parallel
        return piece

    made = building._piece
    with mock.patch.object(building, "_piece", unmarked):
        yield


@contextmanager
def tied_copies_apart():
    """The two stages that hold the embedding do not add up their gradients."""
    with mock.patch.object(PipelineModule, "get_tied_weights_and_groups", return_value=[]):
        yield


@contextmanager
def other_rows_on_rank_1():
    """From the second step on: DeepSpeed compares the first one only. Rank 1 counts its rows backwards."""

    def reversed_rows(task, rows):
        calls.append(len(rows))
        late = os.environ["RANK"] == "1" and len(calls) > 1
        return made(task, [mirrored(row) for row in rows] if late else rows)

    def mirrored(row):
        return row | {"input_ids": row["input_ids"][::-1]}

    calls: list[int] = []
    made = Task.collate
    with mock.patch.object(Task, "collate", reversed_rows):
        yield


@contextmanager
def rows_not_compared():
    """The guard off: batches that digest to the same number."""
    with mock.patch.object(engines.Batch, "digest", return_value=0):
        yield


@contextmanager
def shared_gradients_not_summed():
    """q_norm works on this rank's heads: its gradient is a part of the whole one."""
    with mock.patch.object(sharding, "_summed_over", return_value=lambda gradient: gradient):
        yield


@contextmanager
def shards_averaged():
    """Under ZeRO-3 DeepSpeed averages what the shards of a sequence should add up to."""

    def without_factor(batches, order, mesh):
        weighing = weigh(batches, order, mesh)
        return replace(weighing, factor=weighing.factor / mesh.sp)

    weigh = engines.weigh
    with mock.patch.object(engines, "weigh", without_factor):
        yield


@contextmanager
def other_rows_unnoticed():
    with other_rows_on_rank_1(), rows_not_compared():
        yield


INJECTED = {
    "a norm that leaves out sharded weights": (sharded_weights_unmarked, TENSOR, {"norm"}),
    "tied copies whose gradients are not summed": (tied_copies_apart, TIED_PIPE, {"loss", "norm", "weight"}),
    "other rows on one tensor rank, unnoticed": (other_rows_unnoticed, TENSOR, {"loss", "norm", "weight"}),
    "shared norms whose gradients are not summed": (shared_gradients_not_summed, SHARED_NORM, {"norm", "weight"}),
    "gradients of shards averaged": (shards_averaged, SEQUENCE, {"norm"}),
    "gradients of shards averaged, under SGD": (shards_averaged, SEQUENCE_SGD, {"loss", "norm", "weight"}),
}


@pytest.mark.parametrize(("inject", "each", "seen"), INJECTED.values(), ids=INJECTED.keys())
def test_an_injected_error_is_seen(families, plain, inject, each: Case, seen: set[str]):
    with inject():
        run = train_case(families, each)

    found = differences(run, each, plain(each))
    assert seen <= found.beyond(ALLOWED["fp32"]), found


def test_other_rows_on_one_tensor_rank_stop_the_stage(families):
    run = case_run(families, TENSOR)
    with other_rows_on_rank_1():
        _, problems = refused(run, TENSOR.kind, ranks=2)

    assert [problem["code"] for problem in problems] == ["E567"]
