"""(shape, kind, adapter, tensor and pipeline degree) -> what one rank of each pipeline stage holds, before ZeRO splits it.

DERIVE, pure arithmetic. With both degrees 1 the only share is the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from launcher.plan.parameters import (
    block_parameters,
    block_sizes,
    head_bias_parameters,
    lora_parameters,
    norm_parameters,
    position_parameters,
    vocabulary_parameters,
)
from launcher.plan.shape import ModelShape
from launcher.spec.balance import spread
from launcher.spec.model import Lora


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The fullest tensor rank of one pipeline stage."""

    stage: int  # its place in the pipeline, from 0
    layers: int
    num_params: int
    num_adapter: int
    head: bool  # computes the loss
    num_module: int  # the largest single piece: a block, the embedding or the head, whole, as it is read from the file


@lru_cache(maxsize=1024)
def shares_of(shape: ModelShape, kind: str, adapter: Lora | None, *, tp: int, pp: int) -> tuple[Share, ...]:
    """One for each pipeline stage, in order."""
    split = pipeline_split(shape, kind, pp)
    sizes, ends = block_sizes(shape, tp=tp), [0, *accumulate(split)]
    largest = max(block_parameters(shape), vocabulary_parameters(shape))
    return tuple(
        Share(
            stage=stage,
            layers=layers,
            num_params=sum(sizes[ends[stage] : ends[stage + 1]])
            + _ends(shape, kind, tp=tp, first=stage == 0, last=stage == pp - 1),
            num_adapter=_adapter(shape, kind, adapter, layers, tp=tp, last=stage == pp - 1),
            head=stage == pp - 1,
            num_module=largest,
        )
        for stage, layers in enumerate(split)
    )


@lru_cache(maxsize=1024)
def pipeline_split(shape: ModelShape, kind: str, pp: int) -> tuple[int, ...]:
    """Blocks of each stage, made equal in parameters: the first stage has the embedding too, the last the head."""
    vocabulary = vocabulary_parameters(shape)
    head = shape.hidden if kind == "reward" else vocabulary + head_bias_parameters(shape)
    return spread(list(block_sizes(shape)), before=vocabulary, behind=head, parts=pp)


def _ends(shape: ModelShape, kind: str, *, tp: int, first: bool, last: bool) -> int:
    """What lies before the first block and behind the last one. A tied matrix is on both ends, and once where they are one."""
    reward = kind == "reward"
    tied = shape.tied and not reward
    matrix = vocabulary_parameters(shape, tp=tp if tied else 1)
    before = matrix + position_parameters(shape)
    head = shape.hidden if reward else head_bias_parameters(shape, tp=tp) + (0 if tied else vocabulary_parameters(shape, tp=tp))
    behind = norm_parameters(shape) + head + (matrix if tied and not first else 0)
    return (before if first else 0) + (behind if last else 0)


def _adapter(shape: ModelShape, kind: str, adapter: Lora | None, layers: int, *, tp: int, last: bool) -> int:
    """LoRA matrices of the stage's blocks; a reward model trains its new head beside them."""
    if adapter is None:
        return 0
    return lora_parameters(shape, adapter, layers=layers, tp=tp) + (shape.hidden if kind == "reward" and last else 0)
