"""(spot) -> the (tensor, pipeline, sequence) degrees that are legal for it, and why the others are not. DERIVE, pure.

The legality table decides; what fails most often is asked first, because the rules work out hints that a search does not need.
"""

from __future__ import annotations

from dataclasses import replace

from launcher.plan.asked import Asked, batch_of, global_of
from launcher.plan.legality.nearest import DEGREES, sequence_fits, splits_of, tensor_misfits
from launcher.plan.legality.rule import Spot
from launcher.plan.legality.table import SUBJECTS
from launcher.plan.plan import Rejected

Degrees = tuple[int, int, int]
MOST_TENSOR = 64  # ranks that share a matrix: beyond, each one's part is a sliver


def legal_degrees(spot: Spot) -> tuple[list[Degrees], list[Rejected]]:
    """Plain data parallelism first. A job that pins degrees has only those."""
    if not spot.asked.searches:
        return [(spot.asked.tensor, spot.asked.pipeline, spot.asked.sequence)], []
    legal: list[Degrees] = []
    rejected: list[Rejected] = []
    for tp, pp, sp in splits_of(spot.case.world):
        if tp > MOST_TENSOR:
            break
        asked = replace(spot.asked, tensor=tp, pipeline=pp, sequence=sp)
        refusal = _misfit(spot, asked) or (_refusal(replace(spot, asked=asked)) if asked.replica > 1 else None)
        if refusal is None:
            legal.append((tp, pp, sp))
        else:
            rejected.append(Rejected(plan=_text(asked), code=refusal[0], text=refusal[1]))
    return legal, rejected


def _misfit(spot: Spot, asked: Asked) -> tuple[str, str] | None:
    misfits = tensor_misfits(spot.shape, asked.tensor)
    if misfits:
        return "E217", f"{asked.tensor} does not divide the {' and the '.join(misfits)}"
    if asked.pipeline > spot.shape.layers:
        return "E219", f"{asked.pipeline} pipeline stages, but the model has {spot.shape.layers} blocks"
    if not sequence_fits(spot.shape, asked.sequence):
        return "E218", f"{asked.sequence} ranks cannot share {spot.shape.heads} heads and {spot.shape.kv_heads} key/value heads"
    rows, micro = global_of(spot.job, spot.stage), batch_of(spot.job, spot.stage).micro_seqs or 1
    replicas = spot.case.world // asked.replica
    if rows % (micro * replicas):
        return "E204", f"{rows} rows a step are no multiple of {micro * replicas}, micro x {replicas} replicas"
    return None


def _refusal(spot: Spot) -> tuple[str, str] | None:
    for rules in SUBJECTS.values():
        for rule in rules:
            for refusal in rule.find(spot):
                return rule.code, refusal.what
    return None


def _text(asked: Asked) -> str:
    return " x ".join(f"{name} {getattr(asked, name)}" for name in DEGREES if getattr(asked, name) > 1) or "data parallel"
