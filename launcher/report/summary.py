"""Run folder -> RunSummary: what is known of a run and its stages, from its files alone. Only reading, no process is asked.

Whether the controller is alive comes in as an argument: only the supervisor can tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from launcher.errors import LauncherError, Problem
from launcher.rundir.events import read_events
from launcher.rundir.folder import RunDir, StageDir, read_json

State = Literal["waiting", "running", "done", "kept", "failed", "stopped", "interrupted"]
Figures = Mapping[str, float]

_STAGE_EVENTS: dict[str, State] = {
    "stage.started": "running",
    "stage.resumed": "running",
    "stage.launched": "running",
    "stage.finished": "done",
    "stage.kept": "kept",
    "stage.failed": "failed",
}
_RUN_EVENTS: dict[str, State] = {
    "run.started": "running",
    "run.finished": "done",
    "run.failed": "failed",
    "run.stopped": "stopped",
}
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """One stage. Figures are of held-out data; None and empty where the stage has not come so far."""

    name: str
    kind: str
    state: State
    world: int
    step: int | None
    steps: int | None  # planned; None: told by the data
    seconds: float | None  # from launch to end, of the attempt that finished
    before: Figures = field(default_factory=dict)
    after: Figures = field(default_factory=dict)
    groups: Figures = field(default_factory=dict)
    peak_bytes: float | None = None  # resident memory, summed over the ranks
    cpu_s: float | None = None
    notes: tuple[str, ...] = ()
    samples: tuple[Mapping[str, str], ...] = ()  # prompt, and the answers drawn before and after
    judge: str | None = None  # ppo: the reward stage whose model gives the score


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run."""

    path: str
    job: str
    run_id: str
    state: State
    started: float | None
    last: float | None  # time of the last event
    prepared: bool
    stages: tuple[StageSummary, ...]
    problems: tuple[Mapping[str, str], ...]  # of the last attempt, where it failed

    def as_dict(self) -> dict[str, object]:
        return {"schema": 1, **asdict(self)}


def summarize(run: RunDir, *, alive: bool) -> RunSummary:
    """LauncherError E510 where the folder's plan or job cannot be read."""
    plan, job = _read(run, "plan.json"), _read(run, "job.json")
    history = _History(alive=alive)
    for event in read_events(run.events):
        history.add(event)
    stages = tuple(_stage_summary(run, stage, job, history) for stage in _dicts(plan.get("stages")))
    return RunSummary(
        path=str(run.path),
        job=str(plan.get("job", "")),
        run_id=run.path.name,
        state=history.of_run(),
        started=history.started,
        last=history.last,
        prepared=history.prepared,
        stages=stages,
        problems=tuple(history.problems),
    )


@dataclass(slots=True)
class _History:
    """What the events say, folded one after the other."""

    alive: bool
    run: State = "waiting"
    stages: dict[str, State] = field(default_factory=dict)
    started: float | None = None
    last: float | None = None
    prepared: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[Mapping[str, str]] = field(default_factory=list)

    def add(self, event: Mapping[str, object]) -> None:
        kind, stage, t = str(event.get("kind")), str(event.get("stage", "")), event.get("t")
        if isinstance(t, int | float):
            self.started, self.last = self.started or float(t), float(t)
        self.prepared = self.prepared or kind == "prepare.finished"
        if kind in _STAGE_EVENTS:
            self.stages[stage] = _STAGE_EVENTS[kind]
            if kind == "stage.finished":
                self.seconds[stage] = _number(event.get("seconds")) or 0.0
        if kind in _RUN_EVENTS:
            self.run = _RUN_EVENTS[kind]
            self.problems = [_texts(problem) for problem in _dicts(event.get("problems"))]
            if kind in ("run.failed", "run.stopped") and stage:
                self.stages[stage] = self.run

    def of_run(self) -> State:
        return self._now(self.run)

    def of_stage(self, name: str) -> State:
        return self._now(self.stages.get(name, "waiting"))

    def _now(self, state: State) -> State:
        """Running needs somebody who runs it: a controller that was killed wrote no last event."""
        return "interrupted" if state == "running" and not self.alive else state


def _stage_summary(run: RunDir, plan: Mapping[str, object], job: Mapping[str, object], history: _History) -> StageSummary:
    name = str(plan.get("name"))
    spec = next((one for one in _dicts(job.get("stages")) if (one.get("name") or one.get("kind")) == name), {})
    state, folder = history.of_stage(name), run.stage(name)
    result = _result(folder) if state in ("done", "kept") else {}
    last_step = _last_step(folder)
    return StageSummary(
        name=name,
        kind=str(plan.get("kind")),
        state=state,
        world=_int(plan.get("world")) or 0,
        step=_int(result.get("steps")) or (None if state == "waiting" else last_step),
        steps=_int(spec.get("steps")),
        seconds=history.seconds.get(name) if state in ("done", "kept") else None,
        before=_figures(result.get("before")),
        after=_figures(result.get("after")),
        groups=_figures(result.get("groups")),
        peak_bytes=_sum(result.get("peak_rss_bytes")),
        cpu_s=_sum(result.get("cpu_s")),
        notes=tuple(str(note) for note in _list(result.get("notes"))),
        samples=tuple(_sample(sample) for sample in _list(result.get("samples"))),
        judge=str(spec["reward"]) if spec.get("kind") == "ppo" and spec.get("reward") else None,
    )


def _sample(value: object) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, dict) else {}


def _read(run: RunDir, name: str) -> dict[str, object]:
    path = run.path / name
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise LauncherError(Problem(code="E510", where=str(path), what=what, hint="start a new run")) from None


def _result(folder: StageDir) -> dict[str, object]:
    try:
        return read_json(folder.result)
    except (OSError, ValueError):
        return {}


def _last_step(folder: StageDir) -> int | None:
    """From the end of metrics.jsonl; a torn last line is passed over."""
    try:
        with folder.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            return int(value["step"])
    return None


def _dicts(value: object) -> list[dict[str, object]]:
    return [item for item in _list(value) if isinstance(item, dict)]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _texts(value: Mapping[str, object]) -> dict[str, str]:
    return {key: str(item) for key, item in value.items()}


def _figures(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        return {}
    return {str(name): float(number) for name, number in value.items() if isinstance(number, int | float)}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _sum(value: object) -> float | None:
    numbers = [float(item) for item in _list(value) if isinstance(item, int | float)]
    return sum(numbers) if numbers else None
