"""A finished stage -> <runs>/calibration/scales.json: by how much the plan's time and peak were off. DO.

What is compared is what was done: the prediction is made anew for the rows as they were, padding counted, without the scales of
earlier runs. Nothing here fails a run: what cannot be compared or kept is said. ppo is left out: an iteration is mostly
sampling, whose error says nothing of a training step.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from launcher.errors import LauncherError
from launcher.plan.cost.calibration import device_name
from launcher.plan.cost.rates import Rates, Scale
from launcher.plan.plan import StagePlan
from launcher.plan.replay import Replayed, replay
from launcher.rundir.folder import RunDir, read_json
from launcher.spec.gpu import GpuSpec
from launcher.spec.stages import Stage
from launcher.supervise.blueprints import kept_shapes
from launcher.supervise.calibration import read_scales, scales_path, updating, write_scales
from launcher.supervise.create import Planned
from launcher.supervise.facts import find_shape
from launcher.supervise.journal import Journal
from launcher.supervise.planning import rates_of
from launcher.units import bytes_text, short_seconds_text


def feed_back(run: RunDir, planned: Planned, name: str, journal: Journal) -> None:
    """Compare, keep and tell."""
    stage = next(stage for stage in planned.job.stages if stage.stage_name == name)
    if stage.kind == "ppo" or isinstance(planned.job.cluster.gpu, GpuSpec):  # numbers of the job are the job's own business
        return
    try:
        runs_root = run.path.parent.parent
        rates = replace(rates_of(planned.job, planned.plan.machine, runs_root), scales={})
        compared = _compare(run, planned, stage, rates)
        if compared:
            _keep(scales_path(runs_root), planned, planned.plan.stage(name), rates, compared)
            _tell(journal, name, compared)
    except LauncherError as error:
        problem = error.problems[0]
        journal.say(f"  {name}: not compared with its plan: {problem.where} {problem.what}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        journal.say(f"  {name}: not compared with its plan: {error}")


Compared = dict[str, tuple[float, float]]  # "time" or "memory" -> measured, predicted


def _compare(run: RunDir, planned: Planned, stage: Stage, rates: Rates) -> Compared:
    """Empty where the stage was too short to tell."""
    result = read_json(run.stage(stage.stage_name).result)
    pace = result.get("pace")
    if not isinstance(pace, dict) or not pace.get("longest_row_tokens"):
        return {}
    machine, plan = planned.plan.machine, planned.plan.stage(stage.stage_name)
    shape = find_shape(planned.job, kept_shapes(run.path.parent.parent))
    compared: Compared = {}

    def predicted(row_tokens: object) -> Replayed:
        tokens = float(str(row_tokens))
        return replay(planned.job, stage, plan, machine=machine, shape=shape, rates=rates, row_tokens=tokens)

    peaks = result.get("peak_device_bytes" if machine.device == "cuda" else "peak_rss_bytes")
    if isinstance(peaks, list) and peaks:
        compared["memory"] = (float(max(peaks)), float(predicted(pace["longest_row_tokens"]).peak_bytes))
    step_s = predicted(pace["row_tokens"]).step_s if pace.get("step_s") else None
    if step_s:
        compared["time"] = (float(pace["step_s"]), step_s)
    return compared


def _keep(path: Path, planned: Planned, plan: StagePlan, rates: Rates, compared: Compared) -> None:
    key = (device_name(planned.plan.machine), plan.precision)
    with updating(path):
        scales = read_scales(path)
        scale, basis, _ = scales.get(key, (Scale(), rates.basis, ""))
        if basis != rates.basis:
            scale = replace(scale, time=1.0, runs=0)
        for name, (measured, predicted) in compared.items():
            ratio = measured / predicted
            scale = scale.with_time(ratio) if name == "time" else scale.with_memory(ratio)
        scales[key] = (scale, rates.basis, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        write_scales(path, scales)


def _tell(journal: Journal, stage: str, compared: Compared) -> None:
    journal.event(
        "stage.compared",
        stage=stage,
        **{name: {"measured": measured, "predicted": predicted} for name, (measured, predicted) in compared.items()},
    )
    words = []
    for name, (measured, predicted) in compared.items():
        shown = short_seconds_text if name == "time" else bytes_text
        label = "a step" if name == "time" else "peak"
        words.append(f"{label} {shown(measured)}, planned {shown(predicted)} ({measured / predicted:.2f})")
    journal.say(f"  {stage}: {'; '.join(words)}")
