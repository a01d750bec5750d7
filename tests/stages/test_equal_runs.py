"""Runs that must be equal are equal: ZeRO 0/1/2/3, one and two ranks, 1x8 and 8x1, for every stage that TRL trains.

Tolerances: losses and held-out figures 5e-6 (5e-7 seen), weights 1e-5 after 4 steps of AdamW at 2e-3 (2e-7 seen), gradient
norms 1e-5. Gradients are clipped in these runs (norm 1.5, clip 1), or AdamW would hide a gradient of the wrong scale. Rounding
in another order forbids bit equality across rank counts.
"""

from __future__ import annotations

import pytest

from tests.stages.harness import run_ranks
from tests.stages.look import curve, held_out, largest_difference, train, weights
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks

TOLERANCE = 5e-6
REFERENCE = {"ranks": 1, "zero": 2, "micro": 8, "accum": 1}
LAYOUTS = {
    "zero 1, one rank, eight accumulated": {"ranks": 1, "zero": 1, "micro": 1, "accum": 8},
    "zero 0, two ranks": {"ranks": 2, "zero": 0, "micro": 4, "accum": 1},
    "zero 2, two ranks, four accumulated": {"ranks": 2, "zero": 2, "micro": 1, "accum": 4},
    "zero 3, two ranks": {"ranks": 2, "zero": 3, "micro": 4, "accum": 1},
}


def trained(world, kind, **layout):
    run = make_run(world, kind=kind, **layout)
    train(run, kind, ranks=layout["ranks"])
    return run


@pytest.fixture(scope="module")
def references(world):
    return {}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("kind", ["pretrain", "sft", "reward", "dpo"])
def test_a_layout_changes_neither_curve_nor_weights(world, references, kind, layout):
    reference = references.get(kind) or references.setdefault(kind, trained(world, kind, **REFERENCE))
    run = trained(world, kind, **layout)

    assert len(curve(reference, kind)) == 4
    assert curve(run, kind) == pytest.approx(curve(reference, kind), abs=TOLERANCE)
    assert held_out(run, kind) == pytest.approx(held_out(reference, kind), abs=TOLERANCE)
    ours, theirs = weights(run.stage(kind).artifact), weights(reference.stage(kind).artifact)
    assert largest_difference(ours, theirs) < 1e-5
    if layout["zero"]:  # DeepSpeed tells no norm at ZeRO 0
        assert curve(run, kind, "grad_norm") == pytest.approx(curve(reference, kind, "grad_norm"), abs=1e-5)


def test_an_epoch_that_ends_inside_a_batch_is_the_same_rows_for_everybody(world):
    """96 rows in steps of 40: a sampler per epoch would cut the third step short, elsewhere for one rank than for two."""
    one, two = (
        trained(world, "pretrain", **layout) for layout in ({"ranks": 1, "micro": 40}, {"ranks": 2, "micro": 5, "accum": 4})
    )

    assert curve(two, "pretrain") == pytest.approx(curve(one, "pretrain"), abs=TOLERANCE)
    assert curve(one, "pretrain", "epoch") == pytest.approx([40 / 96, 80 / 96, 120 / 96, 160 / 96])


@pytest.mark.parametrize("layout", [{"zero": 1, "offload": ("cpu", "none")}, {"zero": 3, "offload": ("cpu", "cpu")}])
def test_what_rests_on_the_host_trains_the_same(world, references, layout):
    reference = references.get("sft") or references.setdefault("sft", trained(world, "sft", **REFERENCE))
    run = trained(world, "sft", ranks=2, micro=4, **layout)

    assert curve(run, "sft") == pytest.approx(curve(reference, "sft"), abs=TOLERANCE)


def test_held_out_figures_before_training_do_not_depend_on_ranks_or_batch(world, references):
    reference = references.get("sft") or references.setdefault("sft", trained(world, "sft", **REFERENCE))
    run = trained(world, "sft", ranks=2, zero=0, micro=3, accum=1)

    assert held_out(run, "sft")["before/loss"] == pytest.approx(held_out(reference, "sft")["before/loss"], abs=1e-6)


def _token_mean(world, folder):
    """The first step's loss worked out without any trainer: all 8 rows, one forward each, tokens counted over all of them."""
    import torch
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM

    from launcher.train.rows import DataOrder

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = load_from_disk(str(world / "sft" / "train"))
    nats, tokens, means = 0.0, 0, []
    with torch.no_grad():
        for number in DataOrder(len(rows), seed=3, total=8):
            ids, labels = (torch.tensor([rows[number][column]]) for column in ("input_ids", "labels"))
            counted = int((labels[:, 1:] != -100).sum())
            means.append(model(input_ids=ids, labels=labels).loss.item())
            nats, tokens = nats + means[-1] * counted, tokens + counted
    return nats / tokens, sum(means) / len(means)


def test_rows_of_unequal_length_weigh_by_their_tokens_not_by_their_rank(world):
    run = trained(world, "sft", ranks=2, zero=0, micro=4, accum=1)
    [(by_tokens, by_rows)] = run_ranks(_token_mean, world, world / "model", world=1)

    assert abs(by_tokens - by_rows) > 1e-3, "the rows must be able to show the difference"
    assert curve(run, "sft")[0] == pytest.approx(by_tokens, abs=1e-5)
