"""`python benchmarks/gpu.py --device cpu`: the whole way of a case, on models of a size that a CPU trains in seconds."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run: all weights, and an adapter."""
    out = tmp_path_factory.mktemp("gpu") / "own.csv"
    argv = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--out", out, "--only", "s128-b2x1|lora"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_case_is_measured_by_a_stage_of_its_own(measured, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from published.rows import read_points

    rows = rows_in(measured)
    header = (BENCHMARKS / "data/published_points.csv").read_text().partition("\n")[0]
    assert measured.read_text().partition("\n")[0] == header
    assert [(row["metric"], row["mem_kind"], row["method"]) for row in rows] == [
        ("step_s", "", "full"),
        ("peak_mem_GB", "resident", "full"),
        ("step_s", "", "lora r4 all-linear"),
        ("peak_mem_GB", "resident", "lora r4 all-linear"),
    ]
    assert all(float(row["value"]) > 0 for row in rows)
    assert all("3 steps behind 3" in row["notes"] for row in rows)
    points, skipped = read_points(measured)
    assert (points, {one.reason for one in skipped}) == ([], {"measured on a CPU, where only the benchmark itself is tested"})


def test_a_case_that_hangs_is_ended_and_leaves_the_rows_before_it(measured, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_runs.cases import CPU_CASES
    from gpu_runs.session import machine_here, measure_all

    before = measured.read_text()
    endless = replace(CPU_CASES[1], limit_s=1.0)  # it has not even imported torch by then
    assert measure_all([CPU_CASES[0], endless], machine_here("cpu"), measured, minutes=5) == 1
    assert "tiny-s128-b2x1-z1: is in the file already" in capsys.readouterr().out
    assert measured.read_text().startswith(before)
    [row] = rows_in(measured)[4:]
    assert (row["metric"], row["measured"], row["complete"]) == ("skipped", "0", "0")
    assert row["notes"].endswith("not done after 1 s")
