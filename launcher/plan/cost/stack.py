"""Stack: what one training software moves and launches for a block, counted from its operations. DERIVE, a table.

Bytes are for each element in 16 bit and one token, forward; the backward pass moves BACKWARD times as much. RMSNorm as
transformers writes it goes through fp32 copies (cast 2 + 4, square 4 + 4, mean 4, scale 4 + 4, cast back 4 + 2, weight 2 + 2:
36 bytes read and written), a fused norm reads 2 and writes 2. The stacks of other programs, which only the benchmark needs, are
in benchmarks/published/stacks.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BACKWARD = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    name: str
    launch: Literal["fused", "eager"]
    rms_norm: float  # by elements of the residual stream
    layer_norm: float
    residual: float
    rope: float  # by columns of queries and keys
    heads: float  # copies between layouts, by columns of queries, keys and values
    gated: float  # by columns of the MLP
    plain: float
    adapter_in: float  # LoRA's dropout and cast, by inputs of each adapted matrix
    adapter_out: float  # its scaling and sum, by outputs
    deepspeed: bool
    norms_split: bool = False  # tensor ranks share norms and residuals too (Megatron's sequence parallelism)
    overlaps_tensor: bool = False
    overlaps_data: bool = True  # gradients are reduced under the backward pass
    gathers_hidden: bool = False  # pipeline sends are split over tensor ranks and gathered behind (DeepSpeed)


# Our loop: transformers' modules in eager mode under DeepSpeed.
OURS = Stack(
    name="zerolaunch",
    launch="eager",
    rms_norm=36,
    layer_norm=4,
    residual=6,
    rope=16,
    heads=4,
    gated=10,
    plain=16,
    adapter_in=7,
    adapter_out=12,
    deepspeed=True,
    overlaps_data=False,  # overlap_comm is off below ZeRO 3 (dsconfig/render.py)
    gathers_hidden=True,
)
