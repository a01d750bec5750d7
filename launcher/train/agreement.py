"""Plan, DeepSpeed config and running engine must say the same: what DeepSpeed accepts and trains wrongly is refused here.

refuse_wrong_config reads the rendered file before anything is built; compare_engine asks the engine after initialize.
"""

from __future__ import annotations

import json

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import RunDir
from launcher.rundir.order import StageOrder
from launcher.spec.stages import StageBase
from launcher.train.rows import global_batch

MOST_STEPS = 10**9  # the schema's largest number of steps


def refuse_wrong_config(run: RunDir, stage: StageBase, order: StageOrder) -> None:
    """What DeepSpeed accepts and then trains wrongly, or leaves to chance, is an error before anything is built."""
    config = json.loads(run.ds_config(order.stage).read_text(encoding="utf-8"))
    where = f"rendered/{order.stage}.ds.json"
    problems = [
        Problem(code="E552", where=where, what=f"{key} is still auto", hint="render the run again") for key in _autos(config)
    ]
    for section in ("optimizer", "scheduler"):
        if section in config:
            what = f"a section {section!r}: it would replace the stage's own and decay biases and norms too"
            problems.append(Problem(code="E552", where=where, what=what, hint=f"remove {section}; the stage makes its own"))
    numbers = {
        "train_batch_size": global_batch(order),
        "train_micro_batch_size_per_gpu": order.micro_batch,
        "gradient_accumulation_steps": order.grad_accum,
        "gradient_clipping": stage.clip,  # absent, DeepSpeed clips at 1.0 (runtime/constants.py:203)
    }
    for key, wanted in numbers.items():
        if config.get(key) not in (wanted, "auto"):
            what = f"{key} is {config.get(key, 'absent')}, the plan's is {wanted}"
            problems.append(Problem(code="E552", where=where, what=what, hint="render the run again"))
    for precision in ("bf16", "fp16"):
        enabled, wanted = bool(config.get(precision, {}).get("enabled")), order.precision == precision
        if enabled != wanted:
            what = f"{precision} is {enabled}, the plan's is {wanted}"
            problems.append(Problem(code="E552", where=where, what=what, hint="render the run again"))
    if order.zero == 0 and order.precision in ("bf16", "fp16"):
        what = f"{order.precision} at ZeRO 0 trains wrongly in DeepSpeed (the first Adam step is taken twice, or unscaled)"
        problems.append(Problem(code="E553", where=where, what=what, hint="use parallel.zero: 1, or precision: fp32"))
    if order.precision == "fp16" and config["fp16"].get("loss_scale_window", 1000) < MOST_STEPS:
        what = "the loss scale may grow: DeepSpeed divides that step's gradient by the new scale, so it counts half"
        hint = f"render the run again: fp16.loss_scale_window {MOST_STEPS} or more"
        problems.append(Problem(code="E553", where=where, what=what, hint=hint))
    if problems:
        raise LauncherError(problems)


def _autos(value: object, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [auto for key, inner in value.items() for auto in _autos(inner, f"{path}.{key}".lstrip("."))]
    return [path] if value == "auto" else []


def compare_engine(engine, stage: StageBase, order: StageOrder) -> None:
    """Stop where DeepSpeed, after all its defaults and repairs, would train with other numbers than the plan's."""
    wanted = {
        "train batch": global_batch(order),
        "micro-batch": order.micro_batch,
        "accumulation": order.grad_accum,
        "ZeRO stage": order.zero,
        "gradient clipping": stage.clip,
        "bf16": order.precision == "bf16",
        "fp16": order.precision == "fp16",
    }
    got = {
        "train batch": engine.train_batch_size(),
        "micro-batch": engine.train_micro_batch_size_per_gpu(),
        "accumulation": engine.gradient_accumulation_steps(),
        "ZeRO stage": engine.zero_optimization_stage(),
        "gradient clipping": engine.gradient_clipping(),
        "bf16": bool(engine.bfloat16_enabled()),
        "fp16": bool(engine.fp16_enabled()),
    }
    problems = [
        Problem(
            code="E552",
            where=f"rendered/{order.stage}.ds.json",
            what=f"{name} is {got[name]} in the engine, {wanted[name]} in the plan",
            hint="render the run again",
        )
        for name in wanted
        if got[name] != wanted[name]
    ]
    if problems:
        raise LauncherError(problems)
