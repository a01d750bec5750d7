"""A stage saved under one layout and gone on with under another: the curve goes on as if nothing had changed."""

from __future__ import annotations

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
