"""(a stage's step time) -> what the user is told of time and cost: tokens a second, MFU, hours, money, energy. DERIVE, pure.

MFU is the model's own arithmetic over the peak in 16 bit: 2 x parameters x 3 passes and attention, without what is recomputed
(PaLM, arXiv:2204.02311). Published step times lie between 0.92 and 1.19 times a prediction in 80 % of the cases
(docs/planner.md).
"""

from __future__ import annotations

from launcher.plan.cost.price import cost_of
from launcher.plan.cost.rates import Rates
from launcher.plan.cost.step import StepTime
from launcher.plan.ladder import Ground
from launcher.plan.load import Load
from launcher.plan.parameters import active_parameters, vocabulary_parameters
from launcher.plan.plan import Cost, Time

LOW, HIGH = 0.92, 1.19  # true / predicted: the 10th and the 90th of a hundred published step times

REFERENCE = "scoring under the reference"  # dpo, before its first step
REFERENCE_PASS = 1 / 3  # of a training step, for the same rows


def time_told(load: Load, ground: Ground, step: StepTime | None, rates: Rates, *, num_steps: int | None) -> Time | None:
    """None: the speed of the device is not known. `num_steps`: of the optimizer over the stage; None: told by epochs only."""
    if step is None or rates.gpu is None:
        return None
    tokens = ground.global_batch * load.sequences_per_row * load.row_tokens
    beside = {REFERENCE: REFERENCE_PASS * num_steps * step.step_s} if num_steps and load.kind == "dpo" else {}
    peak = rates.peak_flops * ground.world
    return Time(
        step_s=step.step_s,
        parts=step.parts,
        sent=step.sent,
        tokens_per_s=tokens / step.step_s,
        mfu=tokens * token_flops(load) / step.step_s / peak,
        mfu_causal=tokens * token_flops(load, causal=True) / step.step_s / peak,
        num_steps=num_steps,
        beside_s=beside,
        total_s=num_steps * step.step_s + sum(beside.values()) if num_steps else None,
        low_s=LOW * step.step_s,
        high_s=HIGH * step.step_s,
    )


def token_flops(load: Load, *, causal: bool = False) -> float:
    """Of one token, forward and backward pass of the model that is trained."""
    shape = load.shape
    ends = vocabulary_parameters(shape) * (1 if shape.tied else 2)
    matrices = active_parameters(shape) - ends + (vocabulary_parameters(shape) if load.kind != "reward" else 0)
    attention = 4 * load.row_tokens * shape.heads * shape.head_dim * shape.layers
    passes = 3 if load.adapter is None else 2  # a frozen weight has no gradient of its own
    return passes * 2 * matrices + 3 * attention * (0.5 if causal else 1.0)


def cost_told(time: Time | None, ground: Ground, rates: Rates) -> Cost:
    return cost_of(time.total_s if time else None, gpu=rates.gpu, world=ground.world, prices=rates.prices)
