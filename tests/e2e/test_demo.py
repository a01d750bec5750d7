"""examples/tiny.yaml through all five stages of the real command line, with short stages and a power cut in each but the first.

`make demo` is the same command with the example's own lengths. That those teach the model what they claim is measured by
`python benchmarks/demo.py`, which fails below the limits of its table.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
from pathlib import Path

import pytest

from launcher.backends.shell import find_processes
from launcher.rundir.artifact import find_damage, read_manifest
from tests.e2e.test_faults import attempts

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "examples/tiny.yaml"
STEPS = {"pretrain": 40, "sft": 30, "reward": 20, "dpo": 6, "ppo": 2}
SHORT = [word for stage, steps in STEPS.items() for word in ("--set", f"stages.{stage}.steps={steps}")]
FEW_ROWS = [word for stage in STEPS for word in ("--set", f"stages.{stage}.eval_rows=32")]
NO_GATE = ["--set", "stages.reward.gate=null"]


def cut_power(launcher, process) -> None:
    """Controller, deepspeed and ranks are gone at one instant: stopped first, so that none sees another one die."""
    pids = [process.pid, *(one.pid for one in find_processes(str(launcher.run.path)) if one.pid != process.pid)]
    for signal_number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)
    process.communicate()


def test_the_embedded_default_survives_power_cuts_goes_through_all_five_stages_and_answers(launcher):
    process = launcher.start("run", str(EXAMPLE), *SHORT, *FEW_ROWS, *NO_GATE)
    runs = launcher.folder / "runs/tiny"
    for stage in list(STEPS)[1:]:
        launcher.wait_for(lambda stage=stage: any(runs.glob(f"*/stages/{stage}/metrics.jsonl")), process)
        cut_power(launcher, process)
        process = launcher.start("resume")
    code, out, err = launcher.end(process)
    assert code == 0, err
    run = launcher.run
    assert [attempt[-1] for attempt in attempts(launcher)[:-1]] == [f"{stage} started" for stage in list(STEPS)[1:]]
    finished = [what for attempt in attempts(launcher) for what in attempt if what.endswith(" finished")]
    assert finished == [f"{stage} finished" for stage in STEPS]  # each once: only the unfinished stage is done again
    assert out.splitlines()[0] == str(run.path)
    table = {line.split()[0]: line for line in out.splitlines() if line.split()[:1] and line.split()[0] in STEPS}
    assert set(table) == set(STEPS)
    assert all(line.split()[1] in ("done", "kept") for line in table.values())

    for stage in STEPS:
        folder = run.stage(stage).artifact
        assert find_damage(folder) == []
        metrics = [json.loads(line) for line in run.stage(stage).metrics.read_text().splitlines()]
        assert metrics[-1]["step"] == STEPS[stage]
        assert any(path.name.startswith("events.out") for path in run.stage(stage).tensorboard.rglob("*"))
    result = json.loads(run.stage("pretrain").result.read_text())
    assert result["before"]["loss"] == pytest.approx(math.log(2048), abs=0.1)  # a new model knows nothing: ln(vocabulary)
    assert result["after"]["loss"] < result["before"]["loss"] - 0.5
    parents = read_manifest(run.stage("ppo").artifact)["parents"]
    assert set(parents) == {"model", "reward"}

    code, out, err = launcher("generate", "--prompt", "What does `random.shuffle` do?", "--max-new-tokens", "8")
    assert (code, bool(out.strip())) == (0, True), err
    code, out, err = launcher("report", "--json")
    assert (code, [stage["name"] for stage in json.loads(out)["stages"]]) == (0, list(STEPS)), err
    code, out, err = launcher("export", "--stage", "sft", "-o", "exported")
    assert code == 0, err
    assert (launcher.folder / "exported/model.safetensors").stat().st_size > 100_000

    code, out, err = launcher("resume")
    assert code == 0, err
    assert [line for line in err.splitlines() if "kept" in line] != []
    assert all(f"{stage}: kept" in err for stage in STEPS)
