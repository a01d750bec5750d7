"""Plan -> text for people: one table of all stages, then each stage's memory by part and the reason for every number.

DERIVE, text only. The JSON of a plan is Plan.as_dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.plan.plan import Cost, Machine, Plan, StagePlan, Time
from launcher.units import bytes_text, count_text, seconds_text, short_seconds_text

HEAD = ("stage", "ranks", "ZeRO", "precision", "micro x accum x dp = global", "tokens", "memory of a rank", "fits", "a step")
DEGREES_HEAD = "ranks = dp x tp x pp x sp"


def plan_text(plan: Plan, *, rejected: bool = False) -> str:
    """The whole plan. `rejected` adds the candidates that were not taken."""
    plain = all(stage.dp == stage.world for stage in plan.stages)
    head = HEAD if plain else (HEAD[0], DEGREES_HEAD, *HEAD[2:])
    rows = [_row(stage, plain=plain) for stage in plan.stages]
    lines = [f"{plan.job} on {machine_text(plan.machine)}, speeds by {plan.calibration}", "", *table([head, *rows])]
    for stage in plan.stages:
        lines += ["", *_stage_lines(stage)]
        if rejected:
            lines += _rejected_lines(stage)
    return "\n".join(lines)


def machine_text(machine: Machine) -> str:
    """`8 x h100-80gb, 79.2 GiB each` or `2 CPU processes, 12.0 GiB each`."""
    device = f"{machine.slots} x {machine.gpu or 'GPU'}" if machine.device == "cuda" else f"{machine.slots} CPU processes"
    hosts = f"{machine.nodes} hosts with " if machine.nodes > 1 else ""
    return f"{hosts}{device}, {bytes_text(machine.memory_bytes)} each"


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
        short_seconds_text(stage.time.step_s) if stage.time else "not known",
    )


def _offload_text(stage: StagePlan) -> str:
    places = {"optimizer": stage.offload_optimizer, "parameters": stage.offload_parameters}
    offloaded = [f"{name} on {place}" for name, place in places.items() if place != "none"]
    return f" + {', '.join(offloaded)}" if offloaded else ""


def fit_text(p_fit: float | None) -> str:
    """In words: how sure the memory model is."""
    if p_fit is None:
        return "not known"
    return "yes" if p_fit >= 0.95 else "likely" if p_fit >= 0.8 else "tight"


def _stage_lines(stage: StagePlan) -> Iterator[str]:
    trained = "" if stage.num_trainable == stage.num_params else f", {count_text(stage.num_trainable)} trained"
    yield f"{stage.name} ({stage.kind}): {count_text(stage.num_params)} parameters{trained}"
    parts = sorted(stage.memory.parts.items(), key=lambda part: -part[1])
    yield f"  memory  {', '.join(f'{name} {bytes_text(size)}' for name, size in parts)}"
    if stage.memory.host_peak_bytes:
        yield f"  host    {bytes_text(stage.memory.host_peak_bytes)} a rank"
    if stage.memory.nvme_bytes:
        yield f"  NVMe    {bytes_text(stage.memory.nvme_bytes)} a rank"
    if stage.memory.disk_bytes:
        yield f"  disk    {bytes_text(stage.memory.disk_bytes)} of checkpoints and artifact"
    if stage.time:
        yield from _time_lines(stage.time)
    if stage.cost:
        yield from _cost_lines(stage.cost)
    for reason in stage.reasons:
        yield f"  why     {reason.text} [{reason.code}]"


def _time_lines(time: Time) -> Iterator[str]:
    parts = sorted(time.parts.items(), key=lambda part: -part[1])
    shares = ", ".join(f"{name} {part / time.step_s:.0%}" for name, part in parts if part / time.step_s >= 0.005)
    between = f"{short_seconds_text(time.low_s)} to {short_seconds_text(time.high_s)}"
    yield f"  time    {between} a step, as far off as 80 % of published runs: {shares}"
    speed = f"{count_text(time.tokens_per_s)} tokens/s, MFU {time.mfu:.0%} ({time.mfu_causal:.0%} of what a causal model needs)"
    yield f"  speed   {speed}"
    if time.total_s is not None:
        beside = "".join(f" + {short_seconds_text(seconds)} of {name}" for name, seconds in time.beside_s.items())
        steps = f"{time.num_steps} optimizer steps x {short_seconds_text(time.step_s)}"
        yield f"  stage   {steps}{beside} = {seconds_text(time.total_s)}"


def _cost_lines(cost: Cost) -> Iterator[str]:
    known = ((cost.amount, cost.currency), (cost.kwh, "kWh"), (cost.co2_kg, "kg CO2"))
    words = [f"{value:,.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}" for value, unit in known if value is not None]
    if words:
        yield f"  cost    {', '.join(words)}"


def _rejected_lines(stage: StagePlan) -> Iterator[str]:
    for item in stage.rejected:
        yield f"  not     {item.plan}: {item.text} [{item.code}]"
