"""A run folder as a finished tiny job leaves it, written with the same functions that the run uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.rundir.events import append_event
from launcher.rundir.folder import RunDir, write_json

STAGES = ("pretrain", "sft", "reward", "dpo", "ppo")
RESULTS: dict[str, dict[str, object]] = {
    "pretrain": {"before": {"loss": 7.6312}, "after": {"loss": 4.2049}, "steps": 400},
    "sft": {"before": {"loss": 4.9}, "after": {"loss": 3.1234}, "steps": 300},
    "reward": {
        "before": {"accuracy": 0.49, "margin": 0.0},
        "after": {"accuracy": 0.91, "margin": 2.1},
        "groups": {"other topic": 0.98, "cut short": 0.93, "wrong word": 0.52},
        "steps": 200,
    },
    "dpo": {"before": {"accuracy": 0.0, "margin": 0.0}, "after": {"accuracy": 0.88, "margin": 1.25}, "steps": 80},
    "ppo": {
        "before": {"score": -0.4, "kl": 0.0, "length": 14.0, "finished": 0.8},
        "after": {"score": 0.6, "kl": 3.2, "length": 16.5, "finished": 1.0},
        "steps": 40,
        "notes": ["kl_coef ended at 0.05"],
    },
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Every stage has finished; times are of the real clock and are not looked at."""
    run = RunDir(tmp_path / "tiny" / "20261124-120000-abcdef")
    write_json(run.plan_json, {"job": "tiny", "stages": [{"name": name, "kind": name, "world": 2} for name in STAGES]})
    specs = [{"kind": name, "name": None, "steps": RESULTS[name]["steps"]} for name in STAGES]
    specs[-1]["reward"] = "reward"
    write_json(run.job_json, {"stages": specs})
    append_event(run.events, "run.started", job="tiny")
    append_event(run.events, "prepare.finished")
    for seconds, name in enumerate(STAGES, start=60):
        append_event(run.events, "stage.started", stage=name)
        append_event(run.events, "stage.finished", stage=name, seconds=seconds)
        cost = {"cpu_s": [30.0, 31.0], "peak_rss_bytes": [600 * 1024**2, 624 * 1024**2]}
        write_json(run.stage(name).result, {"schema": 1, "stage": name, **RESULTS[name], **cost})
    append_event(run.events, "run.finished")
    return run
