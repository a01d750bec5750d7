"""(what a stage left behind, what it would be made of now) -> keep, resume, redo or start, with the reason. DERIVE, pure.

A finished stage is kept when the hash of its inputs is the same and its artifact is whole. An unfinished one goes on from a
checkpoint of the same inputs and precision, whatever layout saved it: checkpoints hold whole weights by name. Damage is never
repaired in silence: the user hears which file, and chooses between restoring it and doing the stage again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from launcher.errors import LauncherError, Problem
from launcher.rundir.artifact import Damage

Action = Literal["keep", "resume", "redo", "start"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFact:
    """A checkpoint that verifies."""

    step: int
    inputs: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """What lies in the folder of one stage."""

    stage: str
    artifact: str  # its path, for messages
    has_artifact: bool
    damage: Sequence[Damage]  # of the artifact
    inputs: str | None  # hash in the artifact's manifest
    worlds: Mapping[int, int]  # rank -> world in its success marker
    checkpoints: Sequence[CheckpointFact]
    touched: bool  # something of an earlier attempt lies there
    damaged: Mapping[int, Damage] = field(default_factory=dict)  # step of a checkpoint that does not verify -> its first damage


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do with one stage. `start` finds an empty folder, `redo` sets everything aside first."""

    action: Action
    reason: str


def decide(facts: StageFacts, *, inputs: str, precision: str) -> Decision:
    """LauncherError E505 where the artifact of this stage was tampered with while its inputs still hold."""
    finished = _finished(facts)
    if finished and facts.inputs not in (inputs, None):
        return Decision(action="redo", reason="its settings, data or parent have changed since it finished")
    if finished and facts.damage:
        raise LauncherError(damage_problems(facts.stage, facts.artifact, facts.damage))
    if finished:
        return Decision(action="keep", reason="finished, and its inputs are unchanged")
    return _unfinished(facts, inputs=inputs, precision=precision)


def _finished(facts: StageFacts) -> bool:
    """Every rank of the world that ran has left its marker, and something was handed on."""
    worlds = set(facts.worlds.values())
    return facts.has_artifact and len(worlds) == 1 and set(facts.worlds) == set(range(*worlds))


def _unfinished(facts: StageFacts, *, inputs: str, precision: str) -> Decision:
    fitting = [one for one in facts.checkpoints if (one.inputs, one.precision) == (inputs, precision)]
    if fitting:
        step = max(one.step for one in fitting)
        reason = f"goes on from the checkpoint of step {step}"
        return Decision(action="resume", reason="; ".join([reason, *_damage_texts(facts, after=step)]))
    if not facts.touched:
        return Decision(action="start", reason="not started yet")
    return Decision(action="redo", reason=_why_no_checkpoint(facts, inputs=inputs, precision=precision))


def _why_no_checkpoint(facts: StageFacts, *, inputs: str, precision: str) -> str:
    if not facts.checkpoints:
        return "; ".join(_damage_texts(facts)) or "has not finished and left no checkpoint"
    newest = max(facts.checkpoints, key=lambda one: one.step)
    if newest.inputs != inputs:
        return f"its checkpoint of step {newest.step} was made with other settings, data or parent"
    return f"its checkpoint of step {newest.step} was made in {newest.precision}, the plan has {precision}"


def _damage_texts(facts: StageFacts, *, after: int = 0) -> list[str]:
    """Checkpoints that would have been better than the one used: never passed over in silence."""
    steps = sorted(step for step in facts.damaged if step > after)
    return [
        f"the checkpoint of step {step} is damaged: {facts.damaged[step].file} {facts.damaged[step].what}" for step in steps
    ]


def damage_problems(stage: str, artifact: str, damage: Sequence[Damage]) -> list[Problem]:
    """One problem for each damaged file, all of them at once."""
    hint = f"restore the file, or remove {artifact} and resume: stage {stage} is then done again"
    return [
        Problem(
            code="E505", where=f"{artifact}/{item.file}", what=f"the file {item.what} (artifact of stage {stage})", hint=hint
        )
        for item in damage
    ]
