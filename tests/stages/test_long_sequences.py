"""What makes long sequences and uneven pipelines fit changes memory only: tiles, block inputs on the host, timed stages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.rundir.order import read_order, write_order
from tests.stages.harness import run_ranks
from tests.stages.look import curve, largest_difference, train, weights
from tests.stages.runs import HIDDEN, make_run, write_model

pytestmark = pytest.mark.ranks

TOLERANCE = 5e-6
LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.0}}


@pytest.fixture(scope="module")
def alone(world):
    made = {}

    def of(model: str):
        if model not in made:
            made[model] = make_run(world, kind="sft", model=LORA if model == "lora" else None)
            train(made[model], "sft")
        return made[model]

    return of


def assert_same(run, other):
    assert curve(run, "sft") == pytest.approx(curve(other, "sft"), abs=TOLERANCE)
    assert curve(run, "sft", "grad_norm") == pytest.approx(curve(other, "sft", "grad_norm"), rel=2e-4)
    assert largest_difference(weights(run.stage("sft").artifact), weights(other.stage("sft").artifact)) < 5e-5


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        ({"ranks": 2, "zero": 3, "micro": 4}, "plain"),
        ({"ranks": 2, "tp": 2, "zero": 2}, "lora"),
        ({"ranks": 2, "pp": 2, "zero": 1, "micro": 2, "accum": 4}, "plain"),
    ],
    ids=["zero 3", "tensor, adapter", "pipeline"],
)
def test_block_inputs_that_rest_on_the_host_come_back_as_they_were(world, alone, layout, model):
    run = make_run(world, kind="sft", checkpointing="offload", model=LORA if model == "lora" else None, **layout)
    train(run, "sft", ranks=2)

    assert_same(run, alone(model))


@pytest.mark.parametrize("zero", [1, 3])
def test_mlps_in_tiles_give_the_same_gradients(world, alone, zero):
    """Rows of at most 8 x the model's width, shared by two: four tiles a rank, more than short rows have tokens."""
    run = make_run(world, kind="sft", ranks=2, sp=2, zero=zero)
    write_order(run.order("sft"), replace(read_order(run.order("sft")), max_tokens=8 * HIDDEN))
    train(run, "sft", ranks=2)

    assert_same(run, alone("plain"))


def _tiles(run) -> list[int]:
    """Calls of the first block's gate for one forward pass, by the number of tokens a row may have."""
    import torch

    from launcher.spec.model import ModelSpec
    from launcher.train.building import fill, make_skeleton
    from launcher.train.mesh import make_mesh
    from launcher.train.ranks import meet
    from launcher.train.tiling import tile_mlps

    counts = []
    order = read_order(run.order("sft"))
    mesh = make_mesh(order, meet(order))
    for max_tokens in (HIDDEN, 4 * HIDDEN):
        skeleton = make_skeleton(run.path / order.model, order, ModelSpec(source="x"), mesh, {}, seed=0, adapter=None)
        fill(skeleton, [skeleton.model])
        tile_mlps(skeleton, replace(order, max_tokens=max_tokens))
        calls = []
        skeleton.base.layers[0].mlp.gate_proj.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        skeleton.model(input_ids=torch.ones(1, 8, dtype=torch.long))
        counts.append(len(calls))
    return counts


def test_a_tile_has_about_as_many_tokens_as_the_model_is_wide(world):
    assert run_ranks(_tiles, make_run(world, kind="sft"), world=1) == [[1, 4]]


def test_stages_cut_by_measured_time_train_the_same(world, alone):
    run = make_run(world, kind="sft", ranks=2, pp=2, zero=1, micro=2, accum=4, balance="time")
    train(run, "sft", ranks=2)

    assert_same(run, alone("plain"))


def _blocks(run, seconds) -> tuple[int, ...]:
    from launcher.spec.model import ModelSpec
    from launcher.train import balance
    from launcher.train.building import make_skeleton
    from launcher.train.mesh import make_mesh
    from launcher.train.ranks import leave, meet

    order = read_order(run.order("sft"))
    mesh = make_mesh(order, meet(order))
    skeleton = make_skeleton(run.path / order.model, order, ModelSpec(source="x"), mesh, {}, seed=0, adapter=None)
    real = balance._fastest
    costs = iter(seconds)
    balance._fastest = lambda work: (real(work), next(costs))[1]  # measured, then given: the machine is not the test's subject
    blocks = balance.stage_blocks(skeleton, order, tiles=1)
    leave()
    return blocks


@pytest.mark.parametrize(("seconds", "blocks"), [((1, 100, 1), (2, 2)), ((1, 100, 250), (3, 1)), ((250, 100, 1), (1, 3))])
def test_a_head_that_takes_long_leaves_its_stage_fewer_blocks(world, seconds, blocks):
    folder = world / "four blocks"
    if not folder.exists():
        run_ranks(lambda: write_model(folder, num_hidden_layers=4), world=1)
    run = make_run(world, kind="sft", ranks=2, pp=2, zero=1, micro=2, accum=4, balance="time", start=folder)

    assert run_ranks(_blocks, run, seconds, world=2) == [blocks, blocks]
