"""The stacks of other programs, counted like launcher/plan/cost/stack.py, and how a row's `framework` names one.

Megatron fuses norms (2 bytes read, 2 written), bias-dropout-add (5 read, 3 written with the mask: 7) and bias-GELU or SwiGLU
(4 or 6). Composer's MPT keeps LayerNorm in 16 bit, an eager GELU and plain residuals.
"""

from __future__ import annotations

import re
from dataclasses import replace

from launcher.plan.cost.stack import OURS, Stack

MEGATRON = Stack(
    name="megatron",
    launch="fused",
    rms_norm=4,
    layer_norm=4,
    residual=7,
    rope=0,
    heads=4,
    gated=6,
    plain=4,
    adapter_in=0,
    adapter_out=0,
    deepspeed=False,
)
MEGATRON_CORE = replace(MEGATRON, name="megatron-core", norms_split=True, overlaps_tensor=True)
MEGATRON_DEEPSPEED = replace(MEGATRON, name="megatron-deepspeed", deepspeed=True, gathers_hidden=True)
FSDP = replace(MEGATRON, name="fsdp", residual=6, heads=1.33, gated=10, rope=4)
# torch's own norms and rotary positions, one kernel each where nothing is compiled
FSDP_EAGER = replace(FSDP, rms_norm=24, rope=24)
COMPOSER = replace(FSDP, residual=11)  # its dropout runs and writes a mask, with a probability of 0 too
TRANSFORMERS = replace(OURS, name="transformers", overlaps_data=True)


def stack_named(framework: str) -> Stack:
    """The stack that a `framework` cell means; transformers where it names none of the others."""
    text = framework.lower()
    if text.startswith(OURS.name):
        return OURS
    if "composer" in text:
        return COMPOSER
    if any(word in text for word in ("fsdp", "titan", "litgpt", "lit-gpt", "torchtune")):
        return FSDP if "compile" in text else FSDP_EAGER
    if "megatron" not in text and re.search(r"\bhf\b|^hf|transformers|hugging|\btrl\b|axolotl|factory|swift|peft", text):
        return TRANSFORMERS
    if "deepspeed" in text or text.startswith("meg+ds"):
        return MEGATRON_DEEPSPEED
    if any(word in text for word in ("core", "nemo", "bridge", "megatron-swift")):
        return MEGATRON_CORE
    return MEGATRON if "megatron" in text or "nanotron" in text else TRANSFORMERS
