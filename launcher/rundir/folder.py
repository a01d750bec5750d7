"""RunDir: where everything of one run lies, and how a file is written so that a reader never sees half of it.

DO, but only names and atomic files: no process, no network, no decision. Layout: README, "The run folder".
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# In the environment of a host's ranks, "1" where the first of them looks after the run folder: rank 0 has another disk.
TENDS = "LAUNCHER_TENDS"


def write_atomic(path: Path, text: str) -> None:
    """Write under a temporary name beside `path`, flush to disk, rename: after a crash the old or the new text is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, object]:
    """The object in `path`. OSError or ValueError as open() and json raise them."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value


@dataclass(frozen=True, slots=True)
class StageDir:
    """One stage's folder inside a run: `stages/<stage name>/`."""

    path: Path

    @property
    def prepared(self) -> Path:
        """prepared.json: where the tokenised rows lie, their counts and fingerprint (see train/prepared.py)."""
        return self.path / "prepared.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank{rank}.log"

    @property
    def checkpoints(self) -> Path:
        """step<N>/ folders, each with a manifest; anything without one is not a checkpoint."""
        return self.path / "checkpoints"

    @property
    def artifact(self) -> Path:
        """What the stage hands on: a Hugging Face folder plus manifest.json; with an adapter also adapter/."""
        return self.path / "artifact"

    @property
    def result(self) -> Path:
        """result.json: held-out figures before and after, counts, seconds, peak memory."""
        return self.path / "result.json"

    @property
    def hosts(self) -> Path:
        """hosts.json: what each host of a fleet does, as it was last seen."""
        return self.path / "hosts.json"

    @property
    def away(self) -> Path:
        """away.json: what of the last attempt may lie on other disks alone; removed when all of it has come back."""
        return self.path / "away.json"

    @property
    def fleet_problem(self) -> Path:
        """What the fleet says of hosts that it could not reach, or lost."""
        return self.path / "problems" / "fleet.json"

    def death(self, rank: int) -> Path:
        """How a rank on another host ended, as that host saw it."""
        return self.path / "deaths" / f"rank{rank}.json"

    def done(self, rank: int) -> Path:
        """The success marker of one rank: written as its very last act, holds the world size it saw."""
        return self.path / "done" / f"rank{rank}.json"

    @property
    def listening(self) -> Path:
        """Rank 0's word that the ranks are at their steps, and will save and leave when they are asked to."""
        return self.path / "leave" / "listening.json"

    def left(self, rank: int) -> Path:
        """Instead of `done`: the rank has left when asked to, behind a checkpoint. Holds its step and the world size."""
        return self.path / "leave" / f"rank{rank}.json"

    def problem(self, rank: int) -> Path:
        """What a rank (or prepare, rank 0) says of its own failure: {"code", "where", "what", "hint"} or a traceback's end."""
        return self.path / "problems" / f"rank{rank}.json"


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run: `<runs>/<job name>/<run id>/`."""

    path: Path

    @property
    def job_yaml(self) -> Path:
        """The job file as given."""
        return self.path / "job.yaml"

    @property
    def job_json(self) -> Path:
        """The job as loaded: overrides applied, local paths made absolute. What the ranks read."""
        return self.path / "job.json"

    @property
    def plan_json(self) -> Path:
        return self.path / "plan.json"

    @property
    def rendered(self) -> Path:
        """DeepSpeed configs `<stage>.ds.json`, stage orders `<stage>.order.json`, hostfile, commands.sh."""
        return self.path / "rendered"

    def ds_config(self, stage: str) -> Path:
        return self.rendered / f"{stage}.ds.json"

    def order(self, stage: str) -> Path:
        return self.rendered / f"{stage}.order.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def controller_log(self) -> Path:
        """The talk of a controller that has no terminal."""
        return self.path / "controller.log"

    @property
    def stop_request(self) -> Path:
        """There while a controller on another host is asked to stop."""
        return self.path / "stop.json"

    @property
    def nodes(self) -> Path:
        """nodes/: what nodes that a scheduler started tell each other (see hosts/nodes/board.py)."""
        return self.path / "nodes"

    @property
    def base(self) -> Path:
        """base/: what prepare makes for the first stage: tokenizer/ and, for a new model, model/."""
        return self.path / "base"

    @property
    def cache(self) -> Path:
        """Prepared data, shared by all runs of one runs folder and named by content: `<runs>/.cache/`."""
        return self.path.parent.parent / ".cache"

    def stage(self, name: str) -> StageDir:
        return StageDir(self.path / "stages" / name)
