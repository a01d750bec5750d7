"""Reading what a trained stage left: its curve, result, weights and problems."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.rundir.folder import RunDir
from tests.stages.harness import RankEnd, RanksFailed, run_verb


def train(run: RunDir, kind: str, *, ranks: int = 1) -> list[RankEnd]:
    """Train the stage; RanksFailed with every rank's log where one does not end well."""
    ends = run_verb("train", run.path, kind, world=ranks)
    if any(end.exit_code for end in ends):
        logs = "\n".join(run.stage(kind).rank_log(rank).read_text()[-4000:] for rank in range(ranks))
        raise RanksFailed(ends) from RuntimeError(logs)
    return ends


def refused(run: RunDir, kind: str, *, ranks: int = 1) -> tuple[set[int], list[dict]]:
    """Train a stage that must fail: exit codes and rank 0's problems."""
    ends = run_verb("train", run.path, kind, world=ranks)
    assert not run.stage(kind).artifact.exists()
    assert not run.stage(kind).done(0).exists()
    return {end.exit_code for end in ends}, json.loads(run.stage(kind).problem(0).read_text())["problems"]


def curve(run: RunDir, kind: str, name: str = "loss") -> list[float]:
    """The training curve, one value a step."""
    lines = [json.loads(line) for line in run.stage(kind).metrics.read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def held_out(run: RunDir, kind: str) -> dict[str, float]:
    """Figures before and after, under names like before/loss."""
    result = json.loads(run.stage(kind).result.read_text())
    return {f"{when}/{name}": value for when in ("before", "after") for name, value in result[when].items()}


def notes(run: RunDir, kind: str) -> str:
    return "\n".join(json.loads(run.stage(kind).result.read_text())["notes"])


def weights(folder: Path, file: str = "model.safetensors") -> dict:
    from safetensors.numpy import load_file

    return load_file(folder / file)


def largest_difference(ours: dict, theirs: dict) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(abs(ours[name].astype("float64") - theirs[name]).max()) for name in ours)
