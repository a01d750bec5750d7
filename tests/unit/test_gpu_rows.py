"""benchmarks/gpu.py: its rows come back as the very layout that ran, and the plan predicts them as it predicts a job."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as for a script that lies there

import gpu  # noqa: E402
from gpu_runs.cases import CASES, CPU_CASES, tell  # noqa: E402
from gpu_runs.folder import Command, make_command  # noqa: E402
from gpu_runs.measure import WARM_UP_STEPS, Gauge, Outcome, measure, outcome_of  # noqa: E402
from gpu_runs.rows import Ground, append, columns, done_in, is_done, rows_of  # noqa: E402
from gpu_runs.session import list_text, machine_of  # noqa: E402
from published.fit import predict_time  # noqa: E402
from published.ours import PROMISED, own_of  # noqa: E402
from published.peaks import PeakConstants, peak_bytes  # noqa: E402
from published.rows import Point, Skipped, point_of, read_points  # noqa: E402

from launcher.plan.cost.constants import PUBLISHED  # noqa: E402
from launcher.plan.gpus import GPUS  # noqa: E402
from launcher.rundir.folder import RunDir, write_json  # noqa: E402
from launcher.units import GIB  # noqa: E402

H200 = Ground(machine=machine_of("h200-141gb"), driver="580.159.04", day=date(2026, 11, 28))
NAMES = [case.name for case in CASES]


def measured(*, allocated: int = 20 * GIB, reserved: int = 22 * GIB, device: int = 24 * GIB) -> Outcome:
    """Steps of 0.5 s behind slow ones."""
    ends_s = [10.0, 12.0, 13.0, *(13.0 + 0.5 * step for step in range(1, 5))]
    told = {
        "ends_s": ends_s,
        "engine_s": [0.4] * len(ends_s),
        "peaks": {"start": {"allocated": GIB, "reserved": GIB}, "steps": {"allocated": allocated, "reserved": reserved}},
        "phase": "steps",
        "versions": {"torch": "2.11.0+cu130", "deepspeed": "0.19.8", "cuda": "13.0", "device": "NVIDIA H200"},
    }
    return Outcome(kind="measured", measured=told, device_bytes=device, wall_s=20.0)


def rows_for(case, outcome: Outcome, ground: Ground = H200) -> list[dict[str, str]]:
    return rows_of(case, tell(case, ground.machine), outcome, ground)


def test_no_two_cases_have_the_same_name():
    assert len(set(NAMES)) == len(CASES)


TOLD_APART = {(case.zero, case.checkpointing, bool(case.lora), case.offload_optimizer, case.accum > 1): case for case in CASES}


@pytest.mark.parametrize("case", TOLD_APART.values(), ids=lambda case: case.name)
def test_a_case_is_rendered_for_a_gpu_with_the_plan_that_was_told(case, tmp_path):
    command = make_command(replace(case, seq=64), H200.machine, tmp_path / "case", steps=7)
    config = json.loads(command.run.ds_config(command.stage).read_text())
    [planned] = json.loads(command.run.plan_json.read_text())["stages"]
    assert planned["memory"]["gpu_peak_bytes"] == tell(replace(case, seq=64), H200.machine).memory.peak_bytes
    assert (config["zero_optimization"]["stage"], config["bf16"]["enabled"]) == (case.zero, True)
    assert config["zero_optimization"]["offload_optimizer"]["device"] == case.offload_optimizer
    assert (command.env["DS_ACCELERATOR"], command.env["CUDA_VISIBLE_DEVICES"]) == ("cuda", "0")


def test_a_case_that_the_plan_refuses_is_told_like_one_that_fails(tmp_path):
    machine = replace(H200.machine, device="cpu", gpu=None, devices=())
    refused = replace(CPU_CASES[0], checkpointing="offload")
    outcome = measure(refused, tell(refused, machine), machine, tmp_path / "case", limit_s=60)
    assert (outcome.kind, "[E203]" in outcome.reason) == ("skipped", True)


@pytest.mark.parametrize("case", [*CASES, *CPU_CASES], ids=lambda case: case.name)
def test_a_row_tells_the_layout_that_ran(case):
    found, ran = own_of(rows_for(case, measured())[0]), case.own(cuda=True)
    assert found.layout == ran.layout
    positions = found.load.shape.positions  # nothing depends on it in these families
    assert found.load == replace(ran.load, shape=replace(ran.load.shape, positions=positions))


def test_the_readings_are_rows_of_their_own_in_the_columns_of_the_published_file():
    rows = rows_for(CASES[0], measured())
    assert all(list(row) == columns() for row in rows)
    told = {(row["metric"], row["mem_kind"]): float(row["value"]) for row in rows}
    assert told == {
        ("step_s", ""): 0.5,
        ("peak_mem_GB", "max allocated"): 20.0,
        ("peak_mem_GB", "max reserved"): 22.0,
        ("peak_mem_GB", "nvidia-smi"): 24.0,
    }
    assert WARM_UP_STEPS == 3
    assert "driver 580.159.04" in rows[0]["notes"]
    assert rows[0]["id"] == f"OURS-h200-141gb-{NAMES[0]}-step"


@pytest.mark.parametrize("case", CASES[:12], ids=lambda case: case.name)
def test_a_row_is_predicted_as_the_plan_predicts_the_job(case):
    told = tell(case, H200.machine)
    points = {point.row["mem_kind"]: point for row in rows_for(case, measured()) if isinstance(point := point_of(row), Point)}
    assert predict_time(points[""], PUBLISHED) == pytest.approx(told.step_s)
    allocated, reserved, driver = (
        peak_bytes(points[kind], PeakConstants()) for kind in ("max allocated", "max reserved", "nvidia-smi")
    )
    parts = told.memory.parts
    assert driver == pytest.approx(told.memory.peak_bytes, rel=1e-6)
    assert reserved == pytest.approx(driver - parts["context"], rel=1e-6)
    assert allocated == pytest.approx(reserved - parts["fragmentation"], rel=1e-6)
    assert points["nvidia-smi"].value == 24 * GIB


OUTCOMES = {
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB": ("oom", "E555"),
    "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory": ("skipped", "E555"),  # of the host
    "": ("skipped", "ended by signal 9"),
}


@pytest.mark.parametrize("said", OUTCOMES)
def test_only_a_device_without_memory_is_out_of_memory(said, tmp_path):
    command = Command(run=RunDir(tmp_path), stage="pretrain", argv=[], env={})
    if said:
        problem = {"code": "E555", "where": "", "what": f"no memory is left on the device ({said})", "hint": "less"}
        write_json(command.run.stage("pretrain").problem(0), {"problems": [problem]})
    outcome = outcome_of(command, 1 if said else -9, "", device_bytes=GIB, wall_s=20.0, limit_s=150.0)
    kind, reason = OUTCOMES[said]
    assert (outcome.kind, outcome.reason.startswith(reason)) == (kind, True)


def test_the_gauge_keeps_the_most_that_the_device_held_above_what_it_held_before(monkeypatch):
    used = iter((3, 5, 23, 9))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used=next(used) * GIB))
    gauge = Gauge("a handle")
    for _ in range(3):
        gauge.look()
    assert gauge.above_bytes == 20 * GIB
    assert Gauge().above_bytes is None


def test_running_out_of_memory_is_judged_by_what_the_plan_had_said():
    small, large = (next(case for case in CASES if case.name == name) for name in (NAMES[0], NAMES[-1]))
    [promised], [feared] = (rows_for(case, Outcome(kind="oom", reason="E555 no memory")) for case in (small, large))
    assert (promised["metric"], promised["value"]) == ("fits", "OOM")
    found = [point_of(row) for row in (promised, feared)]
    assert all(isinstance(one, Skipped) and one.memory for one in found[:1])
    assert [one.reason == PROMISED for one in found] == [True, False]
    assert [one.missed for one in found] == [True, False]


def test_rows_of_a_cpu_and_of_failures_are_no_measurements(tmp_path):
    path, ground = tmp_path / "own.csv", replace(H200, machine=replace(H200.machine, device="cpu", gpu=None))
    append(path, rows_for(CPU_CASES[0], measured(), ground))
    append(path, rows_for(CASES[0], Outcome(kind="skipped", reason="ended by signal 9")))
    points, skipped = read_points(path)
    assert points == []
    assert {one.reason.partition(":")[0] for one in skipped} == {
        "measured on a CPU, where only the benchmark itself is tested",
        "could not be measured",
    }
    assert not any(one.missed for one in skipped)


def test_what_failed_is_tried_again_and_what_was_measured_is_not(tmp_path):
    path = tmp_path / "own.csv"
    append(path, rows_for(CASES[0], measured()))
    append(path, rows_for(CASES[1], Outcome(kind="skipped", reason="not done after 150 s")))
    append(path, rows_for(CASES[2], Outcome(kind="oom")))
    assert [is_done(case, H200, done_in(path)) for case in CASES[:4]] == [True, False, True, False]


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_of_the_catalogue_is_known_by_its_name(name):
    machine = machine_of(name)
    point = point_of(rows_for(CASES[0], measured(), replace(H200, machine=machine))[0])
    assert point.gpu.name == name


def test_a_case_without_a_chance_is_left_out_and_one_near_the_limit_is_not():
    machine = machine_of("a100-80gb")
    told = {case.name: tell(case, machine) for case in CASES}
    left_out = [line.split()[0] for line in list_text(CASES, machine).splitlines() if "left out" in line]
    assert left_out == [name for name in NAMES if told[name].hopeless]
    assert NAMES[-1] in left_out
    assert any(0.02 <= one.memory.p_fit < 0.95 for one in told.values() if not one.hopeless)


def test_what_is_not_installed_is_told(monkeypatch, capsys):
    there = gpu.importlib.util.find_spec
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name in ("deepspeed", "dill") else there(name))
    with pytest.raises(SystemExit) as stopped:
        gpu.refuse_missing()
    assert "not installed: deepspeed<0.20,>=0.19.8, dill" in str(stopped.value)
