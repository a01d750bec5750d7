"""What finished runs told: geometric means, drawn to 1 where they are few."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.plan.cost.rates import MEMORY_BOUNDS, TIME_BOUNDS, Scale, catalogue_rates
from launcher.plan.make import make_plan
from launcher.plan.shape import shape_of_new
from launcher.spec.places import Places


def test_runs_are_averaged_as_factors():
    """Twice as slow and twice as fast cancel out."""
    scale = Scale().with_time(2.0).with_time(0.5)
    assert (scale.time, scale.runs) == (pytest.approx(1.0), 2)
    scale = Scale().with_time(1.2).with_time(1.2).with_time(1.2**4)
    assert (scale.time, scale.runs) == (pytest.approx(1.2**2), 3)


def test_times_and_peaks_are_counted_apart():
    scale = Scale().with_memory(1.21).with_memory(1.21)
    assert (scale.time, scale.runs, scale.memory_runs) == (1.0, 0, 2)
    assert scale.shrunk().memory == pytest.approx(1.1)
    assert scale.shrunk().time == 1.0


def test_one_run_weighs_a_third_and_many_weigh_all():
    assert Scale().with_time(8.0).shrunk().time == pytest.approx(2.0)
    assert replace(Scale(), time=1.3, runs=200).shrunk().time == pytest.approx(1.3, rel=5e-3)


def test_a_plan_is_scaled_by_its_precision_alone_and_says_by_what(make_job, cpu):
    job = make_job()
    shape, places = shape_of_new(job.model.new, 2048), Places(file_name="job.yaml", marks={}, stage_names=["sft"])
    rates = catalogue_rates(cpu)
    scaled = replace(
        rates, scales={"fp32": Scale(time=1.44, memory=1.21, runs=2, memory_runs=2), "bf16": Scale(time=9, runs=9)}
    )
    plain, told = (make_plan(job, machine=cpu, shape=shape, places=places, rates=one).stages[0] for one in (rates, scaled))
    assert told.time.step_s == pytest.approx(1.2 * plain.time.step_s)
    assert told.memory.peak_bytes == pytest.approx(1.1 * plain.memory.peak_bytes)
    assert (told.time_scale, told.memory_scale) == (pytest.approx(1.2), pytest.approx(1.1))
    assert (plain.time_scale, plain.memory_scale) == (1.0, 1.0)
    text = "step times x 1.20 (2 stages) and memory x 1.10 (2 stages), as finished runs in fp32 measured"
    assert [reason.text for reason in told.reasons if reason.code == "calibration.runs"] == [text]
    assert not any(reason.code == "calibration.runs" for reason in plain.reasons)


def test_a_stage_that_is_far_off_its_plan_counts_as_the_most_that_is_believed():
    """What a file of scales may hold is what can be written into it."""
    scale = Scale().with_time(1e6).with_memory(9.0)
    assert (scale.time, scale.memory) == (TIME_BOUNDS[1], MEMORY_BOUNDS[1])
    assert Scale().with_time(1e-6).time == pytest.approx(TIME_BOUNDS[0])
