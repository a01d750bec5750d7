"""Work: one optimizer step of one replica as sizes, whatever stage or program it is of. DERIVE, nouns only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.plan.shape import ModelShape

Trained = Literal["all", "adapter", "adapter_and_ends"]  # ends: the embedding and the head beside the adapter
Attention = Literal["flash1", "flash2", "cudnn", "eager"]
Arithmetic = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "fp4"]


def element_bytes(arithmetic: str) -> int:
    """Of a weight or an activation as it lies in memory and is sent; products in 8 and 4 bit read it in 16."""
    return 4 if arithmetic in ("fp32", "tf32") else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is computed, and how it is split. world = dp x tp x pp x sp."""

    shape: ModelShape
    row_tokens: int  # of one whole row
    tokens: float  # of one micro-batch on one rank
    micro_batches: float  # of one replica and step
    dp: int
    tp: int
    pp: int
    sp: int
    zero: int
    arithmetic: Arithmetic
    attention: Attention
    trained: Trained = "all"
    adapter_rank: int = 0
    packed: Literal["nf4", "gptq"] | None = None  # a 4-bit base
    recomputes: Literal["none", "attention", "operations", "all"] = "none"  # operations: every other product is kept
    loss: bool = True  # a reward model has no vocabulary to score
    virtual: int = 1  # pieces of the model on each pipeline stage (interleaved 1F1B)
    ends_fill_stages: bool = False  # the pipeline counts embedding and head as a block each
    gradient_bytes: int = 2  # of one gradient that replicas add up
    gathers: int = 2  # of the parameters for each micro-batch, ZeRO 3
    gather_bytes: float = 2.0  # of one parameter that is gathered
    scatter_bytes: float = 2.0  # of one gradient that is scattered
    near_ranks: int = 1  # that hold a second copy of the parameters between them (hpZ): the second gather stays among them
    split: tuple[int, ...] | None = None  # blocks of each pipeline stage; None: as equal as can be

    @property
    def world(self) -> int:
        return self.dp * self.tp * self.pp * self.sp

    @property
    def shards(self) -> int:
        """Ranks that ZeRO splits over."""
        return self.dp * self.sp
