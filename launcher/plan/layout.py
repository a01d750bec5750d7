"""Layout: how a load is spread over ranks, everything the planner may choose. DERIVE, nouns only."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.plan import Checkpointing, Place, Precision, StagePlan

BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the load is spread: everything the planner may choose."""

    dp: int
    zero: int
    precision: Precision
    checkpointing: Checkpointing
    offload_optimizer: Place
    offload_parameters: Place
    micro_batch: int
    grad_accum: int
    cuda: bool
    tp: int = 1
    pp: int = 1
    sp: int = 1
    hpz: int = 1  # ranks of a secondary partition of the parameters; 1: there is none
    ratio: float = 1.0  # share of an offloaded optimizer that is on the CPU
    quantized_weights: bool = False  # gathered in 8 bit
    quantized_gradients: bool = False  # reduced in 4 bit

    @property
    def shards(self) -> int:
        """Ranks that ZeRO splits over: the replicas, and within each the ranks that share its sequences."""
        return self.dp * self.sp

    @property
    def parameter_shards(self) -> int:
        return self.shards if self.zero == 3 else 1

    def in_flight(self, stage: int) -> int:
        """Micro-batches whose activations a pipeline stage holds at once: one forward, one backward (1F1B)."""
        return min(self.pp - stage, self.grad_accum)


def sums_in_fp32(layout: Layout | StagePlan) -> bool:
    """Whether gradients of several micro-batches are added up in fp32.

    In bf16 the error of a gradient grows with their number (64: 1.1e-2 against 6.8e-3, relative, measured). At ZeRO 1
    BF16_Optimizer does it, but takes sequence ranks for tensor ranks: all but the first fail with no gradient to make the norm
    of (DeepSpeed 0.19.8 runtime/bf16_optimizer.py:573). A pipeline under offload leaves a tied weight's fp32 sums apart
    (trap 51).
    """
    works = (layout.sp == 1 or layout.zero >= 2) and (layout.pp == 1 or layout.offload_optimizer == "none")
    return layout.precision == "bf16" and layout.grad_accum > 1 and works
