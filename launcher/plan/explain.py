"""Plan -> text for people: one table of all stages, then each stage's memory by part and the reason for every number.

DERIVE, text only. The JSON of a plan is Plan.as_dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.plan.plan import Machine, Plan, StagePlan
from launcher.units import bytes_text, count_text

HEAD = ("stage", "ranks", "ZeRO", "precision", "micro x accum x dp = global", "tokens", "memory of a rank", "fits")
DEGREES_HEAD = "ranks = dp x tp x pp x sp"


def plan_text(plan: Plan, *, rejected: bool = False) -> str:
    """The whole plan. `rejected` adds the candidates that were not taken."""
    plain = all(stage.dp == stage.world for stage in plan.stages)
    head = HEAD if plain else (HEAD[0], DEGREES_HEAD, *HEAD[2:])
    rows = [_row(stage, plain=plain) for stage in plan.stages]
    lines = [f"{plan.job} on {machine_text(plan.machine)}", "", *table([head, *rows])]
    for stage in plan.stages:
        lines += ["", *_stage_lines(stage)]
        if rejected:
            lines += _rejected_lines(stage)
    return "\n".join(lines)


def machine_text(machine: Machine) -> str:
    """`8 x h100-80gb, 79.2 GiB each` or `2 CPU processes, 12.0 GiB each`."""
    device = f"{machine.slots} x {machine.gpu or 'GPU'}" if machine.device == "cuda" else f"{machine.slots} CPU processes"
    return f"{device}, {bytes_text(machine.memory_bytes)} each"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(stage: StagePlan, *, plain: bool) -> tuple[str, ...]:
    degrees = "" if plain else f" = {stage.dp} x {stage.tp} x {stage.pp} x {stage.sp}"
    return (
        stage.name,
        f"{stage.world}{degrees}",
        f"{stage.zero}{_offload_text(stage)}",
        stage.precision,
        f"{stage.micro_batch} x {stage.grad_accum} x {stage.dp} = {stage.global_batch}",
        str(stage.max_tokens),
        f"{bytes_text(stage.memory.peak_bytes)} of {bytes_text(stage.memory.limit_bytes)}",
        fit_text(stage.memory.p_fit),
    )


def _offload_text(stage: StagePlan) -> str:
    places = {"optimizer": stage.offload_optimizer, "parameters": stage.offload_parameters}
    offloaded = [f"{name} on {place}" for name, place in places.items() if place != "none"]
    return f" + {', '.join(offloaded)}" if offloaded else ""


def fit_text(p_fit: float | None) -> str:
    """In words: how sure the memory model is. It is not calibrated, 90 % of true peaks are below 1.38 times its figure."""
    if p_fit is None:
        return "not known"
    return "yes" if p_fit >= 0.95 else "likely" if p_fit >= 0.9 else "tight"


def _stage_lines(stage: StagePlan) -> Iterator[str]:
    trained = "" if stage.num_trainable == stage.num_params else f", {count_text(stage.num_trainable)} trained"
    yield f"{stage.name} ({stage.kind}): {count_text(stage.num_params)} parameters{trained}"
    parts = sorted(stage.memory.parts.items(), key=lambda part: -part[1])
    yield f"  memory  {', '.join(f'{name} {bytes_text(size)}' for name, size in parts)}"
    if stage.memory.host_peak_bytes:
        yield f"  host    {bytes_text(stage.memory.host_peak_bytes)} a rank"
    if stage.memory.disk_bytes:
        yield f"  disk    {bytes_text(stage.memory.disk_bytes)} of checkpoints and artifact"
    for reason in stage.reasons:
        yield f"  why     {reason.text} [{reason.code}]"


def _rejected_lines(stage: StagePlan) -> Iterator[str]:
    for item in stage.rejected:
        yield f"  not     {item.plan}: {item.text} [{item.code}]"
