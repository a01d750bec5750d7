"""A stage predicted again for the rows that it had."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.plan.cost.rates import Scale, catalogue_rates
from launcher.plan.replay import replay
from launcher.plan.shape import shape_of_new


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_full_rows_give_the_plans_own_numbers(make_job, plan, cpu, kind):
    """A preference pair is one row of two sequences."""
    job = make_job(stages=[{"kind": kind, "data": {"source": "python-docs", "max_tokens": 128}}])
    stage, planned = job.stages[0], plan(job).stages[0]
    tokens = 256 if kind == "reward" else 128
    rates = replace(catalogue_rates(cpu), scales={"fp32": Scale(time=3.0, runs=99)})  # no scale has a part in it
    shape = shape_of_new(job.model.new, 2048)
    again = replay(job, stage, planned, machine=cpu, shape=shape, rates=rates, row_tokens=tokens)
    assert again.step_s == pytest.approx(planned.time.step_s)
    assert again.peak_bytes == planned.memory.peak_bytes


def test_shorter_rows_are_predicted_to_be_faster_and_smaller(make_job, plan, cpu):
    job = make_job()
    shape = shape_of_new(job.model.new, 2048)

    def again(tokens):
        return replay(
            job, job.stages[0], plan(job).stages[0], machine=cpu, shape=shape, rates=catalogue_rates(cpu), row_tokens=tokens
        )

    assert again(32.4).step_s < again(128).step_s
    assert again(32.4).peak_bytes < again(128).peak_bytes


def test_a_device_nobody_knows_has_a_peak_and_no_time(make_job, plan, gpus):
    machine = replace(gpus, gpu="strange")
    job = make_job()
    shape = shape_of_new(job.model.new, 2048)
    planned = plan(job, machine=machine).stages[0]
    again = replay(job, job.stages[0], planned, machine=machine, shape=shape, rates=catalogue_rates(machine), row_tokens=128)
    assert again.step_s is None
    assert again.peak_bytes > 0
