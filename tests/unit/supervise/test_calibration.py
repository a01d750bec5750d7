"""<runs>/calibration/: files that are written, read again, refused when damaged, and taken by plans."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from launcher.errors import LauncherError
from launcher.plan.cost.calibration import Calibration
from launcher.plan.cost.rates import Scale, catalogue_rates
from launcher.spec.load import open_job_text
from launcher.supervise.calibration import (
    calibration_path,
    rates_here,
    read_calibration,
    read_scales,
    scales_of,
    scales_path,
    write_calibration,
    write_scales,
)
from launcher.supervise.planning import plan_of

MEASURED = Calibration(
    device="h100-80gb",
    measured="2026-11-28T10:00:00Z",
    ranks=8,
    gpu={"tflops_16bit": 900.0},
    links={"nvlink_gbs": 400.0},
    constants={"flash2": 0.6},
)
JOB = """
name: job
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
cluster: {gpu: h100-80gb, slots: 8}
stages: [{kind: sft, data: {source: python-docs, max_tokens: 64}}]
"""


def planned(tmp_path, *overrides):
    loaded = open_job_text(JOB, file_name="job.yaml", folder=tmp_path, overrides=overrides)
    return plan_of(loaded, runs_root=tmp_path)


@pytest.fixture
def measured(tmp_path):
    path = calibration_path(tmp_path, MEASURED.device)
    write_calibration(path, MEASURED, beside={"versions": {"torch": "2.13.0"}, "figures": {}})
    return path


def test_a_calibration_is_read_as_it_was_written(measured):
    assert read_calibration(measured) == MEASURED
    assert read_calibration(measured.with_name("l4-24gb.json")) is None


def test_a_plan_takes_what_was_measured_on_the_same_kind_of_gpu_and_says_from_where(measured, tmp_path):
    assert planned(tmp_path).calibration == f"measured:{measured}"
    assert planned(tmp_path).as_dict()["calibration"] == f"measured:{measured}"
    assert planned(tmp_path, "cluster.gpu=l4-24gb").calibration == "catalogue"
    own = "cluster.gpu={name: mine, memory_gib: 80, tflops: 900, memory_gbs: 3000}"
    assert planned(tmp_path, own).calibration == "catalogue"


def test_a_measured_number_changes_the_times(measured, tmp_path):
    slow = json.loads(measured.read_text())
    before = planned(tmp_path).stages[0].time.step_s
    slow["constants"]["launch_eager"] = 1.0
    measured.write_text(json.dumps(slow))
    assert planned(tmp_path).stages[0].time.step_s > before + 0.9


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "no JSON"),
        ("[]", "does not hold a JSON object"),
        ("{}", "schema is missing"),
        ('{"schema": 9}', "schema 9 is not 1"),
        ({"device": "a100-80gb"}, "device is 'a100-80gb', but the file is of h100-80gb"),
        ({"ranks": 0}, "ranks is 0, not a whole number from 1 to 1024"),
        ({"ranks": 10**9}, "ranks is 1000000000"),
        ({"measured": 1}, "measured is 1"),
        ({"measured": "yesterday"}, "measured is 'yesterday', not a time"),
        ({"disturbed": 1.5}, "disturbed is 1.5, not a number from 0 to 1"),
        ({"gpu": []}, "gpu is no"),
        ({"gpu": {"watts": -1}}, "gpu.watts is -1, not a number from 0.1 to 10000"),
        ({"gpu": {"tflops_16bit": 1e-300}}, "gpu.tflops_16bit is 1e-300"),
        ({"gpu": {"tflops_16bit": 1e14}}, "gpu.tflops_16bit is 100000000000000.0, not a number from 0.0001 to 100000"),
        ({"gpu": {"tflops_16bit": "700"}}, "gpu.tflops_16bit is '700'"),
        ({"gpu": {"multiprocessors": 0.3}}, "gpu.multiprocessors is 0.3, not a whole number from 1 to 10000"),
        ({"gpu": {"nvlink_gpus": 2.5}}, "gpu.nvlink_gpus is 2.5, not a whole number"),
        ({"links": {"host_gpus": 1.5}}, "links.host_gpus is 1.5, not a whole number"),
        ({"constants": {"flash2": 1e14}}, "constants.flash2 is 100000000000000.0"),
        ({"constants": {"memory_share": 1e-14}}, "constants.memory_share is 1e-14"),
        ({"gpu": {"x": 1}}, "gpu.x"),
        ({"gpu": {"name": 1}}, "name"),
    ],
)
def test_a_damaged_calibration_is_an_error_and_never_passed_over(measured, tmp_path, text, what):
    measured.write_text(text if isinstance(text, str) else json.dumps(json.loads(measured.read_text()) | text))
    with pytest.raises(LauncherError) as error:
        planned(tmp_path)
    [problem] = error.value.problems
    assert (problem.code, problem.where) == ("E416", str(measured))
    assert what in problem.what
    assert problem.hint == f"remove {measured}, or measure again on that machine: launcher calibrate --runs {tmp_path}"


def test_a_calibration_that_other_work_disturbed_is_taken_and_the_plan_says_so(measured, tmp_path):
    assert "calibration.disturbed" not in {reason.code for reason in planned(tmp_path).stages[0].reasons}
    write_calibration(measured, replace(MEASURED, disturbed=0.35), beside={})
    plan = planned(tmp_path)
    assert plan.calibration == f"measured:{measured}"
    [text] = [reason.text for reason in plan.stages[0].reasons if reason.code == "calibration.disturbed"]
    assert text.startswith("speeds were measured while other programs took 35% of the cores")


def test_a_gpu_by_numbers_takes_nothing_that_was_measured_of_one_that_has_its_name(measured, tmp_path):
    write_scales(scales_path(tmp_path), SCALES)
    stage = planned(tmp_path, "cluster.gpu={name: h100-80gb, memory_gib: 80, tflops: 900, memory_gbs: 3000}").stages[0]
    assert (stage.time_scale, stage.memory_scale) == (1.0, 1.0)


def test_a_price_names_a_gpu_as_cluster_gpu_does(tmp_path):
    (tmp_path / "prices.yaml").write_text("gpu_hour: {H100-80GB: 100}\n")
    plain, priced = (planned(tmp_path, *one).stages[0].cost for one in ((), (f"cluster.prices={tmp_path}/prices.yaml",)))
    assert plain.amount is None or priced.amount > 10 * plain.amount


def test_a_calibration_that_is_a_folder_is_an_error_too(tmp_path):
    calibration_path(tmp_path, "h100-80gb").mkdir(parents=True)
    with pytest.raises(LauncherError) as error:
        planned(tmp_path)
    assert error.value.problems[0].what == "cannot be used: is a directory"


SCALES = {
    ("h100-80gb", "bf16"): (Scale(time=1.44, memory=1.1, runs=2, memory_runs=5), "catalogue", "2026-11-28T10:00:00Z"),
    ("cpu-2", "fp32"): (Scale(time=0.9, memory=1.0, runs=1, memory_runs=1), "catalogue", "2026-11-28T10:00:00Z"),
}


ROW = {
    "device": "h100-80gb",
    "stack": "zerolaunch",
    "precision": "bf16",
    "speeds": "catalogue",
    "updated": "2026-11-28T10:00:00Z",
}
ROW |= {"time": 1.5, "memory": 1.1, "runs": 3, "memory_runs": 3}
WRONG = ({"time": 1e8}, {"time": 0.01}, {"memory": 2.5}, {"memory": 1e-5}, {"runs": 0.5}, {"runs": -1}, {"memory": True})


def test_scales_are_read_as_they_were_written(tmp_path):
    assert read_scales(scales_path(tmp_path)) == {}
    write_scales(scales_path(tmp_path), SCALES)
    assert read_scales(scales_path(tmp_path)) == SCALES


def test_scales_of_another_stack_are_left_alone_and_not_read(tmp_path):
    write_scales(scales_path(tmp_path), SCALES)
    told = json.loads(scales_path(tmp_path).read_text())
    told["scales"][0]["stack"] = "another"
    scales_path(tmp_path).write_text(json.dumps(told))
    assert len(read_scales(scales_path(tmp_path))) == 1


def test_a_plan_is_scaled_by_the_runs_of_its_own_device(tmp_path):
    before = planned(tmp_path).stages[0].time.step_s
    write_scales(scales_path(tmp_path), SCALES)
    after = planned(tmp_path).stages[0]
    assert after.time.step_s == pytest.approx(1.2 * before)
    assert planned(tmp_path).as_dict()["stages"][0]["scale"] == {
        "time": pytest.approx(1.2),
        "memory": pytest.approx(1.1 ** (5 / 7)),
    }


def test_times_start_again_where_the_speeds_were_measured_anew_and_peaks_do_not(measured, tmp_path):
    found = scales_of(SCALES, "h100-80gb", MEASURED.measured)["bf16"]
    assert (found.time, found.runs) == (1.0, 0)
    assert (found.memory, found.memory_runs) == (1.1, 5)
    write_scales(scales_path(tmp_path), SCALES)
    assert planned(tmp_path).stages[0].time_scale == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"schema": 1}',
        '{"schema": 1, "scales": {}}',
        '{"schema": 1, "scales": [7]}',
        '{"schema": 2, "scales": []}',
        *(json.dumps({"schema": 1, "scales": [ROW | change]}) for change in WRONG),
    ],
)
def test_damaged_scales_are_an_error(tmp_path, text):
    scales_path(tmp_path).parent.mkdir()
    scales_path(tmp_path).write_text(text)
    with pytest.raises(LauncherError) as error:
        planned(tmp_path)
    assert error.value.problems[0].code == "E416"
    assert "forgotten" in error.value.problems[0].hint


@pytest.mark.parametrize("change", [{"time": 0}, {"time": "1"}, {"memory": -1}, {"runs": True}, {"updated": None}])
def test_a_scale_that_cannot_be_is_an_error(tmp_path, change):
    write_scales(scales_path(tmp_path), SCALES)
    told = json.loads(scales_path(tmp_path).read_text())
    told["scales"][1] |= change
    scales_path(tmp_path).write_text(json.dumps(told))
    with pytest.raises(LauncherError) as error:
        read_scales(scales_path(tmp_path))
    assert error.value.problems[0].code == "E416"


def test_every_problem_of_a_job_is_told_beside_a_damaged_calibration(measured, tmp_path):
    measured.write_text("{")
    with pytest.raises(LauncherError) as error:
        planned(tmp_path, "parallel.tensor=3")
    assert {problem.code for problem in error.value.problems} >= {"E416", "E201"}


def test_a_gpu_that_nobody_knows_is_timed_once_it_is_measured(tmp_path, away_gpu):
    name = away_gpu.gpu
    numbers = {"tflops_16bit": 50.0, "memory_gbs": 300.0, "multiprocessors": 60}
    found = replace(MEASURED, device="strange-9000", gpu=numbers, links={"pcie_gbs": 10.0})
    assert rates_here(catalogue_rates(away_gpu), away_gpu, tmp_path).gpu is None
    write_calibration(calibration_path(tmp_path, "strange-9000"), found, beside={})
    rates = rates_here(catalogue_rates(away_gpu), away_gpu, tmp_path)
    assert (rates.gpu.name, rates.gpu.tflops_16bit, rates.links.pcie_gbs) == (name, 50.0, 10.0)
    assert rates.peak_flops == 50e12  # no vendor's peak is known


@pytest.fixture
def away_gpu():
    from launcher.plan.away import away_machine

    return replace(away_machine("l4-24gb", slots=2), gpu="Strange 9000")
