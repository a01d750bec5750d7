"""Real ranks measure this machine, on small sizes: what they write is what plans are calibrated by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.plan.cost.calibration import calibrated_rates, calibration_of, check_numbers
from launcher.plan.cost.figures import Figures, figures_from
from launcher.plan.cost.rates import catalogue_rates
from launcher.plan.plan import Machine
from launcher.rundir.folder import RunDir, read_json
from launcher.units import GIB
from tests.stages.harness import run_ranks, run_verb

MACHINE = Machine(
    device="cpu",
    slots=2,
    gpu=None,
    memory_bytes=4 * GIB,
    host_memory_bytes=8 * GIB,
    disk_free_bytes=None,
    cores=2,
    bf16=True,
    fp16=False,
)


def _measured(world: int) -> str:
    import torch

    from launcher.train.ranks import join, leave
    from launcher.train.speed import SMALL, Stopwatch, measure

    had_cores, asked = Stopwatch.had_cores, []
    Stopwatch.had_cores = lambda watch: asked.append((watch, watch.wall_s)) or had_cores(watch)
    ranks = join("cpu", tf32=False)
    told = json.dumps(measure(ranks, SMALL, budget_s=0.005))
    [(watch, wall_s)] = asked
    assert 0 < wall_s == watch.wall_s, "something was timed after the share of the cores was told"
    assert ranks.world == world
    assert torch.is_grad_enabled()
    leave()
    return told


@pytest.fixture(scope="module", params=[1, 2])
def figures(request: pytest.FixtureRequest) -> Figures:
    """What rank 0 of one and of two ranks would write; every rank holds the same."""
    told = run_ranks(_measured, request.param, world=request.param)
    assert len(set(told)) == 1, "a figure is that of the slowest rank, on all ranks"
    return figures_from(json.loads(told[0]))


@pytest.mark.ranks
def test_every_figure_is_a_time_and_the_links_are_measured_where_there_are_any(figures):
    seconds = [one.seconds for one in (*figures.products, *figures.blocks, *figures.collectives, figures.loss, figures.adam)]
    assert len(figures.blocks) == 2
    assert min(seconds) > 0
    assert figures.attention.forward_s > 0
    assert bool(figures.collectives) == (figures.world > 1)
    assert 0 < figures.had_cores <= 1
    assert figures.host_copies is None


@pytest.mark.ranks
def test_plans_can_be_calibrated_by_them(figures):
    machine = replace(MACHINE, slots=figures.world)
    found = calibration_of(figures, machine, measured="2026-11-28T10:00:00Z")
    check_numbers(found)
    rates = calibrated_rates(found, machine, catalogue_rates(machine))
    assert rates.speeds(machine).gpu.tflops_16bit > 0


@pytest.mark.ranks
def test_the_verb_leaves_a_result_and_a_marker_for_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from launcher.train import speed

    monkeypatch.setattr("launcher.stages.calibrate.CPU", speed.SMALL)
    run = RunDir(tmp_path)
    ends = run_verb("calibrate", run.path, "cpu", world=2)
    assert [end.exit_code for end in ends] == [0, 0], run.stage("calibrate").rank_log(0).read_text()
    assert [read_json(run.stage("calibrate").done(rank))["world"] for rank in range(2)] == [2, 2]
    assert figures_from(read_json(run.stage("calibrate").result)).world == 2
