"""A stage saved under one layout and gone on with under another: the curve goes on as if nothing had changed."""

from __future__ import annotations

import json
import shutil

import pytest

from launcher.rundir.folder import RunDir
from tests.stages.look import curve, held_out, largest_difference, notes, train, weights
from tests.stages.runs import make_run

pytestmark = pytest.mark.ranks

LAYOUTS = {
    "dp1 zero0": {"ranks": 1, "zero": 0, "micro": 8},
    "tp2 zero1": {"ranks": 2, "tp": 2, "zero": 1, "micro": 8},
    "pp2 zero1": {"ranks": 2, "pp": 2, "zero": 1, "micro": 4, "accum": 2},
    "dp2 zero3": {"ranks": 2, "zero": 3, "micro": 4},
    "sp2 zero2": {"ranks": 2, "sp": 2, "zero": 2, "micro": 8},
    "tp2 zero3": {"ranks": 2, "tp": 2, "zero": 3, "micro": 8},
    "dp2 tp2 zero1": {"ranks": 4, "tp": 2, "zero": 1, "micro": 2, "accum": 2},
    "tp2 pp2 zero1": {"ranks": 4, "tp": 2, "pp": 2, "zero": 1, "micro": 4, "accum": 2},
}
NAMES = list(LAYOUTS)
RING = [(NAMES[number - 1], name) for number, name in enumerate(NAMES)]  # each layout is left once and reached once
PAIRS = [
    pytest.param(source, target, id=f"{source} to {target}", marks=() if (source, target) in RING else pytest.mark.matrix)
    for source in NAMES
    for target in NAMES
]
SAVED_AT = 2
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 5e-6, 5e-5  # fp32, sums in another order. Seen: 1.4e-7, 6e-8


def make(world, layout: str) -> RunDir:
    settings = {"steps": 4, "log_every": 1, "keep": 2}
    return make_run(world, kind="sft", checkpoint_every=SAVED_AT, stage=settings, **LAYOUTS[layout])


@pytest.fixture(scope="module")
def straight(world):
    """The straight run under a layout, trained when it is first asked for."""
    made: dict[str, RunDir] = {}

    def of(layout: str) -> RunDir:
        if layout not in made:
            made[layout] = make(world, layout)
            train(made[layout], "sft", ranks=LAYOUTS[layout]["ranks"])
        return made[layout]

    return of


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_stage_goes_on_under_another_layout(world, straight, source, target):
    whole, run = straight(source), make(world, target)
    saved = f"step{SAVED_AT}"
    shutil.copytree(whole.stage("sft").checkpoints / saved, run.stage("sft").checkpoints / saved)

    train(run, "sft", ranks=LAYOUTS[target]["ranks"])

    assert f"resumed from step {SAVED_AT}" in notes(run, "sft")
    assert (f"checkpoint {saved} was saved by" in notes(run, "sft")) == (source != target)
    tolerance = {"abs": LOSS_TOLERANCE if source != target else 0.0, "rel": 0.0}
    assert curve(run, "sft") == pytest.approx(curve(whole, "sft")[SAVED_AT:], **tolerance)
    after = {name: value for name, value in held_out(whole, "sft").items() if name.startswith("after/")}
    got = {name: value for name, value in held_out(run, "sft").items() if name.startswith("after/")}
    assert got == pytest.approx(after, **tolerance)
    difference = largest_difference(weights(run.stage("sft").artifact), weights(whole.stage("sft").artifact))
    assert difference <= (WEIGHT_TOLERANCE if source != target else 0.0)


LORA = {"model": {"adapter": {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.0}}}
MORE = {
    "bf16": ("sft", {"precision": "bf16"}, 3e-3),  # masters of three kinds: BF16_Optimizer where gradients are summed in fp32
    "sft with an adapter": ("sft", LORA, LOSS_TOLERANCE),
    "dpo": ("dpo", {}, LOSS_TOLERANCE),
}
WAYS = [("dp2 tp2 zero1", "pp2 zero1"), ("pp2 zero1", "dp2 zero3"), ("dp2 zero3", "dp2 tp2 zero1")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]} to {way[1]}")
@pytest.mark.parametrize(("kind", "settings", "tolerance"), MORE.values(), ids=MORE.keys())
def test_so_does_one_in_16_bit_with_an_adapter_or_of_pairs(world, way, kind, settings, tolerance):
    source, target = way
    stage = {"steps": 4, "log_every": 1, "keep": 2}
    whole, run = (
        make_run(world, kind=kind, checkpoint_every=SAVED_AT, stage=stage, **settings, **LAYOUTS[layout]) for layout in way
    )
    train(whole, kind, ranks=LAYOUTS[source]["ranks"])
    shutil.copytree(whole.stage(kind).checkpoints / f"step{SAVED_AT}", run.stage(kind).checkpoints / f"step{SAVED_AT}")
    if kind == "dpo":
        shutil.copy(whole.stage(kind).path / "reference.npz", run.stage(kind).path / "reference.npz")
    train(run, kind, ranks=LAYOUTS[target]["ranks"])

    assert "continued by" in notes(run, kind)
    order = LAYOUTS[target]
    told = json.loads(run.stage(kind).result.read_text())["layout"]
    assert (told["tp"], told["pp"], told["zero"]) == (order.get("tp", 1), order.get("pp", 1), order["zero"])
    assert curve(run, kind) == pytest.approx(curve(whole, kind)[SAVED_AT:], abs=tolerance)
    assert held_out(run, kind)["after/loss"] == pytest.approx(held_out(whole, kind)["after/loss"], abs=tolerance)
    if "precision" not in settings:  # numpy reads no bf16
        ours, theirs = (weights(one.stage(kind).artifact) for one in (run, whole))
        assert largest_difference(ours, theirs) <= WEIGHT_TOLERANCE
