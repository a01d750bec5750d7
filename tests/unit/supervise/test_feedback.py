"""A finished stage against its plan: what is kept for the next plan, and that nothing of it fails a run."""

from __future__ import annotations

import json

import pytest

from launcher.plan.cost.rates import Scale
from launcher.plan.make import make_plan
from launcher.rundir.events import read_events
from launcher.rundir.folder import read_json, write_json
from launcher.spec.load import open_job_text
from launcher.supervise.calibration import read_scales, scales_path, write_scales
from launcher.supervise.create import Planned
from launcher.supervise.facts import detect_machine, find_shape
from launcher.supervise.feedback import feed_back
from launcher.supervise.journal import Journal
from launcher.supervise.planning import plan_of

JOB = """
name: job
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
cluster: {slots: 2}
batch: {global: 8}
stages:
  - {kind: sft, data: {source: python-docs, max_tokens: 64}, steps: 5}
  - {kind: reward, data: {source: python-docs, max_tokens: 64}, steps: 5}
  - {kind: ppo, from: sft, reward: reward, data: {source: python-docs, max_tokens: 64}, max_new_tokens: 8, steps: 5}
"""


@pytest.fixture
def loaded(tmp_path):
    return open_job_text(JOB, file_name="job.yaml", folder=tmp_path)


@pytest.fixture
def planned(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine = detect_machine(loaded.job, runs_root=tmp_path)
    plan = make_plan(loaded.job, machine=machine, shape=find_shape(loaded.job), places=loaded.places)
    return Planned(job=loaded.job, job_text=loaded.text, plan=plan)


@pytest.fixture
def finish(run, planned):
    """Let a stage end `slower` and `larger` than its plan; its rows were full unless said otherwise."""

    def finished(name="sft", *, slower=1.0, larger=1.0, quiet=True, **pace):
        plan = planned.plan.stage(name)
        tokens = plan.max_tokens * (2 if name == "reward" else 1)
        told = {"step_s": slower * plan.time.step_s, "row_tokens": tokens, "longest_row_tokens": tokens, "timed_steps": 9}
        peaks = [1, round(larger * plan.memory.peak_bytes)]
        write_json(run.stage(name).result, {"pace": told | pace, "peak_rss_bytes": peaks})
        feed_back(run, planned, name, Journal(run, quiet=quiet))

    return finished


def kept(run) -> Scale | None:
    scales = read_scales(scales_path(run.path.parent.parent))
    assert len(scales) <= 1
    return next((scale for scale, _, _ in scales.values()), None)


def test_a_stage_is_kept_as_measured_over_predicted(run, finish):
    finish(slower=1.5, larger=1.1)
    assert (kept(run).time, kept(run).memory) == (pytest.approx(1.5), pytest.approx(1.1))
    assert (kept(run).runs, kept(run).memory_runs) == (1, 1)


def test_stages_are_averaged_as_factors_and_pairs_count_as_two_sequences(run, finish):
    finish(slower=2.0)
    finish("reward", slower=0.5)
    assert (kept(run).time, kept(run).runs) == (pytest.approx(1.0), 2)


def test_the_next_plan_is_scaled_and_its_runs_are_compared_without_the_scale(run, finish, loaded, planned):
    root = run.path.parent.parent
    for _ in range(6):
        finish(slower=2.0)
    scaled = plan_of(loaded, runs_root=root).stages[0]
    assert scaled.time.step_s == pytest.approx(2 ** (6 / 8) * planned.plan.stages[0].time.step_s)
    finish(slower=2.0)  # as slow as before: the mean stays where it is
    assert kept(run).time == pytest.approx(2.0)


def test_short_rows_are_compared_with_what_short_rows_should_take(run, finish, planned):
    """A step on rows of 16 tokens that takes as long as planned for 64 is slower than it should be."""
    finish(row_tokens=16.0)
    assert kept(run).time > 1.5


def test_ppo_and_stages_too_short_to_tell_leave_nothing(run, finish):
    finish("ppo", slower=3.0)
    assert kept(run) is None
    finish(step_s=None, row_tokens=None)
    assert (kept(run).runs, kept(run).memory_runs) == (0, 1)


def test_a_new_measurement_starts_the_times_again(run, finish):
    root = run.path.parent.parent
    finish(slower=4.0, larger=1.2)
    [(key, (scale, _, updated))] = read_scales(scales_path(root)).items()
    write_scales(scales_path(root), {key: (scale, "2026-01-01T00:00:00Z", updated)})  # made with speeds that are gone
    finish(slower=1.5, larger=1.2)
    assert (kept(run).time, kept(run).runs) == (pytest.approx(1.5), 1)
    assert (kept(run).memory, kept(run).memory_runs) == (pytest.approx(1.2), 2)


@pytest.mark.parametrize("name", ["result", "scales"])
def test_a_damaged_file_is_told_and_fails_nothing(run, finish, planned, capsys, name):
    path = run.stage("sft").result if name == "result" else scales_path(run.path.parent.parent)
    if name == "scales":
        path.parent.mkdir()
        path.write_text("{")
        finish(quiet=False)
        assert path.read_text() == "{"  # left for somebody to look at
    else:
        path.parent.mkdir(parents=True)
        path.write_text("{")
        feed_back(run, planned, "sft", Journal(run))
    assert "sft: not compared with its plan" in capsys.readouterr().err


def test_a_result_without_a_pace_is_passed_over(run, planned, capsys):
    write_json(run.stage("sft").result, {"after": {}})
    feed_back(run, planned, "sft", Journal(run))
    assert kept(run) is None
    assert capsys.readouterr().err == ""


def test_people_and_programs_are_told(run, finish, capsys):
    finish(slower=1.5, larger=1.1, quiet=False)
    assert "(1.50)" in capsys.readouterr().err
    [event] = [event for event in read_events(run.events) if event["kind"] == "stage.compared"]
    assert event["time"]["measured"] == pytest.approx(1.5 * event["time"]["predicted"])
    rows = read_json(scales_path(run.path.parent.parent))["scales"]
    assert json.dumps(rows[0]["speeds"]) == '"catalogue"'
