"""`launcher calibrate` on small processes that leave what the measuring ranks leave."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from launcher.backends import local
from launcher.backends.request import TOKEN, LaunchRequest
from launcher.backends.shell import read_stat
from launcher.cli import calibrate
from launcher.cli.main import main
from launcher.errors import LauncherError
from launcher.plan.cost.constants import CPU
from launcher.plan.cost.rates import cpu_device
from launcher.rundir.folder import RunDir, write_json
from launcher.spec.job import ClusterSpec
from launcher.supervise.calibration import read_calibration
from launcher.supervise.facts import machine_here
from launcher.supervise.lock import this_process
from launcher.supervise.measuring import measure_machine
from launcher.supervise.stop import StopFlag
from launcher.units import GIB
from tests.figures import Known, as_told, figures_of

SIZES = ((512, 2048, 768), (512, 768, 2048), (2048, 768, 512))
NOW = datetime(2026, 11, 28, 10, 30, tzinfo=UTC)
RANKS = """
import json, os, sys, time
from pathlib import Path
from launcher.rundir.folder import RunDir, write_atomic, write_json
run, fault, world = RunDir(Path(sys.argv[1])), sys.argv[3], int(sys.argv[4])
folder = run.stage("calibrate")
if fault == "hang":
    time.sleep(60)
if fault == "die":
    problem = {"code": "E555", "where": "", "what": "no memory", "hint": "h"}
    write_json(folder.problem(0), {"t": time.time(), "problems": [problem]})
    sys.exit(5)
write_atomic(folder.result, sys.argv[2] if fault != "torn" else sys.argv[2][:40])
for rank in range(world):
    write_json(folder.done(rank), {"world": world})
"""


@pytest.fixture
def figures():
    gpu = replace(cpu_device(cores=1, memory_bytes=4 * GIB), tflops_16bit=0.2, fp32_ratio=0.45, memory_gbs=28.0)
    return figures_of(Known(gpu=gpu, constants=CPU, world=2), precision="fp32", sizes=SIZES)


@pytest.fixture
def ranks(monkeypatch, quick, figures):
    """Put small programs in place of the ranks: ranks(fault)."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def use(fault: str = "", **changes: object) -> None:
        told = json.dumps(as_told(figures) | changes)

        def request(machine, run, *, port, starter):
            argv = (sys.executable, "-c", RANKS, str(run.path), told, fault, str(machine.slots))
            return LaunchRequest(stage="calibrate", argv=argv, env=((TOKEN, str(run.path)),), world=machine.slots)

        monkeypatch.setattr(local, "calibrate_request", request)

    return use


def measure(tmp_path, stop=None):
    machine = machine_here(ClusterSpec(slots=2), runs_root=tmp_path)
    return measure_machine(machine, runs_root=tmp_path, now=NOW, stop=stop or StopFlag())


def test_what_the_ranks_measured_is_written_with_versions_and_the_time(ranks, tmp_path, figures):
    ranks()
    measured = measure(tmp_path)
    assert measured.path.parent == tmp_path / "calibration"
    assert read_calibration(measured.path) == measured.calibration
    told = json.loads(measured.path.read_text())
    assert (told["measured"], told["ranks"]) == ("2026-11-28T10:30:00Z", 2)
    assert {"torch", "deepspeed"} <= set(told["versions"])
    assert told["gpu"]["tflops_16bit"] == pytest.approx(0.2, rel=1e-2)
    assert told["figures"]["products"][0]["rows"] == 512


def test_a_rank_that_fails_is_told_with_its_own_words_and_nothing_is_written(ranks, tmp_path):
    ranks("die")
    with pytest.raises(LauncherError) as error:
        measure(tmp_path)
    assert error.value.problems[0].code == "E555"
    assert not list((tmp_path / "calibration").glob("*.json"))


@pytest.mark.parametrize(("fault", "changes"), [("torn", {}), ("", {"adam": 7})])
def test_figures_that_cannot_be_understood_are_told(ranks, tmp_path, fault, changes):
    ranks(fault, **changes)
    with pytest.raises(LauncherError) as error:
        measure(tmp_path)
    assert error.value.problems[0].code == "E510"


def test_a_stop_leaves_what_was_measured_before(ranks, tmp_path):
    ranks()
    before = measure(tmp_path).path.read_text()
    ranks("hang")
    stop = StopFlag()
    stop.ask(signal.SIGTERM)
    assert measure(tmp_path, stop) is None
    assert next((tmp_path / "calibration").glob("*.json")).read_text() == before


def test_the_command_says_what_was_seen_and_where_it_lies(ranks, tmp_path, capsys):
    ranks()
    assert main(["calibrate", "--slots", "2", "--runs", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("2 CPU processes, all at once, measured in ")
    assert f"plans take it from {tmp_path}/calibration/cpu-" in out
    assert "other programs" not in err


def test_the_command_says_when_others_had_the_cores(ranks, tmp_path, capsys):
    ranks(had_cores=0.6)
    assert main(["calibrate", "--slots", "2", "--runs", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "other programs took 40% of the cores" in err
    assert json.loads(out)["figures"]["had_cores"] == 0.6
    assert json.loads(out)["disturbed"] == 0.4


def test_a_second_one_is_refused_with_the_command_that_ends_the_first(ranks, tmp_path, capsys):
    ranks()
    first = subprocess.Popen(["sleep", "60"])
    folder = RunDir((tmp_path / "calibration" / "measuring").resolve())
    folder.path.mkdir(parents=True)
    ticks = read_stat(first.pid).started_ticks
    write_json(folder.path / "controller.json", asdict(replace(this_process(), pid=first.pid, started_ticks=ticks)))
    try:
        assert main(["calibrate", "--slots", "2", "--runs", str(tmp_path)]) == 4
        told = capsys.readouterr().err
        assert "[E424]" in told
        command = told.split("or end it: ")[1].strip()
        subprocess.run(shlex.split(command), check=True)
        assert first.wait(timeout=10) == -signal.SIGTERM
    finally:
        first.kill()
    assert main(["calibrate", "--slots", "2", "--runs", str(tmp_path)]) == 0


@pytest.mark.parametrize("text", ["0", "many", "1025"])
def test_a_number_of_ranks_is_a_number(text, capsys):
    assert main(["calibrate", "--slots", text]) == 2
    assert "is not a number of ranks" in capsys.readouterr().err


def test_figures_of_a_gpu_have_a_text_too(figures, tmp_path):
    from launcher.plan.cost.figures import HostCopies
    from launcher.supervise.measuring import Measured

    copies = replace(figures, device="NVIDIA H100", host_copies=HostCopies(bytes=2**28, up_s=0.005, down_s=0.006))
    measured = Measured(calibration=None, figures=copies, path=tmp_path, seconds=12.0)
    assert "to the GPU" in calibrate.measured_text(measured)
