"""(run, stage name or none) → the finished stage whose model is meant. Shared by both sides: `generate` and `export` ask here.

DO, but only looking: job.json for the stages in order, manifests for what has finished. Hashes are checked by who loads.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import LauncherError, Problem
from launcher.rundir.artifact import read_manifest
from launcher.rundir.folder import RunDir, StageDir, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOn:
    """A finished stage and the kind of model in its artifact: "causal" or "reward"."""

    stage: str
    folder: StageDir
    model_kind: str


def stage_names(run: RunDir) -> list[str]:
    """The stages of the job, in the order they run. E510 where job.json cannot be read."""
    try:
        stages = read_json(run.job_json)["stages"]
        assert isinstance(stages, list)
        return [str(stage.get("name") or stage["kind"]) for stage in stages]
    except (OSError, ValueError, KeyError, AssertionError) as error:
        hint = "start a new run, or use the version of launcher that wrote it"
        raise LauncherError(Problem(code="E510", where=str(run.job_json), what=f"not readable: {error}", hint=hint)) from error


def find_model(run: RunDir, stage: str | None, *, any_kind: bool) -> HandedOn:
    """The stage that is named, or the last one in the chain that hands on a language model. E120, E566.

    `any_kind` lets a named reward model pass: it can be exported, but it does not generate.
    """
    names = stage_names(run)
    if stage is not None and stage not in names:
        hint = f"the stages are {', '.join(names)}"
        raise LauncherError(Problem(code="E120", where="--stage", what=f"no stage {stage!r} in this run", hint=hint))
    finished = {name: found for name in names if (found := _handed_on(run, name)) is not None}
    if stage is None:
        causal = [found for found in finished.values() if found.model_kind == "causal"]
        if not causal:
            raise LauncherError(_nothing(run, "no stage has handed on a language model yet", list(finished)))
        return causal[-1]
    if stage not in finished:
        raise LauncherError(_nothing(run, f"stage {stage} has not finished", list(finished)))
    if finished[stage].model_kind != "causal" and not any_kind:
        others = [name for name, found in finished.items() if found.model_kind == "causal"]
        raise LauncherError(_nothing(run, f"stage {stage} hands on a reward model, which gives scores and no text", others))
    return finished[stage]


def _handed_on(run: RunDir, name: str) -> HandedOn | None:
    manifest = read_manifest(run.stage(name).artifact)
    if manifest is None:
        return None
    return HandedOn(stage=name, folder=run.stage(name), model_kind=str(manifest.get("model_kind")))


def _nothing(run: RunDir, what: str, usable: list[str]) -> Problem:
    hint = f"use --stage {usable[-1]}" if usable else f"finish it first: launcher resume {run.path}"
    return Problem(code="E566", where=str(run.path), what=what, hint=hint)
