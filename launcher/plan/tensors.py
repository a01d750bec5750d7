"""(shape, kind, adapter, degrees) -> the tensors of one rank, and how ZeRO splits them, to the element. DERIVE, pure.

DeepSpeed 0.19.8 works on tensors, not on sums: ZeRO 1 and 2 put each parameter group into one flat buffer that is filled up to
a multiple of twice the ranks, ZeRO 3 fills up each tensor. tests/stages/test_held_bytes.py compares with what ranks hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from launcher.plan.families.blueprint import Blueprint, matrices_of, vectors_of
from launcher.plan.parameters import adapted_linears
from launcher.plan.shape import Linear, ModelShape, block_linears
from launcher.plan.share import Share, shares_of
from launcher.spec.model import Lora

PERSISTENT_WIDTHS = 10  # stage3_param_persistence_threshold / hidden (dsconfig/render.py)
SWAPPED_ELEMENTS = 2**19  # of a tensor's part on NVMe: 1 MiB in 16 bit, below it stays in memory (swap_tensor/utils.py)
MOST_LISTED = 1024  # ranks that are looked at one by one
NCCL_ALIGNMENT = 2  # elements (stage_1_and_2.py, bf16_optimizer.py: nccl_start_alignment_factor)
# Matrices of a block before which its norms stand in the model's order; elsewhere they are last.
_NORMS_AT: dict[str, tuple[int, ...]] = {"gpt2": (0, 2), "opt": (4, 6), "gpt_neox": (0, 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Elements of each tensor of one rank before ZeRO splits it, in the model's order."""

    matrices: tuple[int, ...]  # trained, with weight decay
    vectors: tuple[int, ...]  # trained, without: norms and biases are an optimizer group of their own (train/optimizer.py)
    frozen: tuple[int, ...]  # beside an adapter

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        return tuple(group for group in (self.matrices, self.vectors) if group)

    @property
    def trained(self) -> tuple[int, ...]:
        return self.matrices + self.vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Elements that one rank holds of its tensors, the fullest where ranks differ."""

    trained: int  # before ZeRO splits them
    frozen: int
    flat: int  # ZeRO 1, 2: flat buffers of what is trained; a rank steps 1 / ranks of each
    touched: int  # ZeRO 1, 2: whole tensors of which a rank steps any
    shards: int  # ZeRO 3: of what is trained
    frozen_shards: int
    persistent: int  # ZeRO 3: of small tensors, gathered beside their shards all the time
    largest: int  # one tensor that is trained
    swapped: int  # ZeRO 3: of all shards, what a disk takes where parameters rest on one
    largest_shard: int  # ZeRO 3: of one tensor


@lru_cache(maxsize=4096)
def split_of(shape: ModelShape, kind: str, adapter: Lora | None, *, stage: int, tp: int, pp: int, ranks: int) -> Split:
    """Of the fullest tensor rank of a pipeline stage whose states ZeRO splits over `ranks`."""
    tensors = tensors_of(shape, kind, adapter, stage=stage, tp=tp, pp=pp)
    parts = [-(-size // ranks) for size in tensors.trained + tensors.frozen]
    return Split(
        trained=sum(tensors.trained),
        frozen=sum(tensors.frozen),
        flat=sum(_padded(group, ranks) for group in tensors.groups),
        touched=_touched(tensors, ranks),
        shards=sum(-(-size // ranks) for size in tensors.trained),
        frozen_shards=sum(-(-size // ranks) for size in tensors.frozen),
        persistent=sum(size for size in tensors.trained + tensors.frozen if size <= PERSISTENT_WIDTHS * shape.hidden),
        largest=max(tensors.trained),
        swapped=sum(part for part in parts if part >= SWAPPED_ELEMENTS),
        largest_shard=max(parts),
    )


@lru_cache(maxsize=512)
def tensors_of(shape: ModelShape, kind: str, adapter: Lora | None, *, stage: int, tp: int, pp: int) -> Tensors:
    """Of the fullest tensor rank of a pipeline stage."""
    shares = shares_of(shape, kind, adapter, tp=tp, pp=pp)
    share, start = shares[stage], sum(share.layers for share in shares[:stage])
    before, behind, first, last = _ends(shape, kind, share, tp=tp)
    blocks = [_block(shape, block, tp=tp) for block in range(start, start + share.layers)]
    all_matrices = (*before, *(size for matrices, _ in blocks for size in matrices), *behind)
    all_vectors = (*first, *(size for _, vectors in blocks for size in vectors), *last)
    if adapter is None:
        return Tensors(matrices=all_matrices, vectors=all_vectors, frozen=())
    head = (shape.hidden,) if kind == "reward" and share.head else ()  # peft keeps the first head beside the one it trains
    trained = (*(_adapter(shape, adapter, tp=tp) * share.layers), *head)
    return Tensors(matrices=trained, vectors=(), frozen=all_matrices + all_vectors)


_Elements = tuple[int, ...]


def _ends(shape: ModelShape, kind: str, share: Share, *, tp: int) -> tuple[_Elements, _Elements, _Elements, _Elements]:
    """Matrices before the blocks, matrices behind them, vectors before, behind. A tied matrix is on both ends of a pipeline."""
    if shape.blueprint is not None:
        return _ends_of_blueprint(shape.blueprint, score=(shape.hidden,) if kind == "reward" else None)
    first, reward = share.stage == 0, kind == "reward"
    tied, rows = shape.tied and not reward, -(-shape.vocab // tp)
    before: tuple[int, ...] = ()
    if first or (tied and share.head):
        before = ((rows if tied else shape.vocab) * shape.hidden,)
    if first and shape.learned_positions:
        before += (shape.learned_positions * shape.hidden,)
    if not share.head:
        return before, (), (), ()
    behind = (shape.hidden,) if reward else () if tied else (rows * shape.hidden,)
    bias = (rows,) if shape.head_bias and not reward else ()
    vectors = _norm(shape, shape.hidden) + bias
    return (before, behind, vectors, ()) if shape.family == "opt" else (before, behind, (), vectors)  # OPT's norm stands first


def _ends_of_blueprint(blueprint: Blueprint, *, score: _Elements | None) -> tuple[_Elements, _Elements, _Elements, _Elements]:
    """`score`: the head of a reward model, which takes the place of the language head."""
    before, behind, head = blueprint.before, blueprint.behind, blueprint.head
    matrices = matrices_of(head) if score is None else score
    of_head = vectors_of(head) if score is None else ()
    return matrices_of(before), matrices_of(behind) + matrices, vectors_of(before), vectors_of(behind) + of_head


def _block(shape: ModelShape, block: int, *, tp: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(matrices, vectors) of one block. Matrices are split over tensor ranks, norms and the biases of sums are not."""
    if shape.blueprint is not None:
        return matrices_of(shape.blueprint.block), vectors_of(shape.blueprint.block)
    linears = block_linears(shape, block)
    matrices = [-(-linear.num_weights // tp) for linear in linears]
    if shape.has_experts(block):
        experts = shape.experts * shape.hidden * -(-shape.expert_ffn // tp)
        matrices += [2 * experts, experts, shape.experts * shape.hidden]
    return tuple(matrices), tuple(_vectors(shape, linears, tp))


def _vectors(shape: ModelShape, linears: Sequence[Linear], tp: int) -> Iterator[int]:
    norms = _NORMS_AT.get(shape.family, (len(linears),) * shape.norms_per_block)
    behind_attention = next((place + 1 for place, linear in enumerate(linears) if linear.row), len(linears))
    for place in range(len(linears) + 1):
        if shape.query_key_norm and place == behind_attention:
            yield from _norm(shape, shape.head_dim) * 2
        for _ in range(norms.count(place)):
            yield from _norm(shape, shape.hidden)
        if place < len(linears) and linears[place].bias:
            linear = linears[place]
            yield linear.outputs if linear.row else -(-linear.outputs // tp)


def _norm(shape: ModelShape, width: int) -> tuple[int, ...]:
    return (width, width) if shape.layer_norm else (width,)


def _adapter(shape: ModelShape, adapter: Lora, *, tp: int) -> tuple[int, ...]:
    """A and B of each adapted matrix of a block; a tensor rank has its part of the side that is split."""
    sizes: list[int] = []
    for linear in adapted_linears(shape, adapter):
        inputs = -(-linear.inputs // tp) if linear.row else linear.inputs
        outputs = linear.outputs if linear.row else -(-linear.outputs // tp)
        sizes += [adapter.rank * inputs, adapter.rank * outputs]
    return tuple(sizes)


def _padded(group: Sequence[int], ranks: int) -> int:
    """ZeRO 1, 2: elements of a group's flat buffer."""
    aligned = NCCL_ALIGNMENT * ranks
    return -(-sum(group) // aligned) * aligned


def _touched(tensors: Tensors, ranks: int) -> int:
    """ZeRO 1, 2: a rank steps one stretch of each flat buffer, and keeps the gradients of the tensors it lies in whole."""
    by_rank = dict.fromkeys(_distinct_ranks(tensors, ranks), 0)
    for group in tensors.groups:
        part, ends = _padded(group, ranks) // ranks, list(accumulate(group))
        first = 0  # the tensor that a stretch begins in
        for rank in by_rank:
            while first < len(ends) and ends[first] <= rank * part:
                first += 1
            last = first
            while last + 1 < len(ends) and ends[last] < (rank + 1) * part:
                last += 1
            if first < len(ends):
                by_rank[rank] += ends[last] - ends[first] + group[first]
            by_rank[rank] += max(0, (rank + 1) * part - max(ends[-1], rank * part))  # what fills the last stretch up
    return max(by_rank.values())


def _distinct_ranks(tensors: Tensors, ranks: int) -> Sequence[int]:
    """One of each kind, in order: all of them, or where they are many those around the borders of the tensors."""
    if ranks <= MOST_LISTED:
        return range(ranks)
    found = {0, ranks - 1}
    for group in tensors.groups:
        part = _padded(group, ranks) // ranks
        found |= {end // part + near for end in accumulate(group) for near in (-1, 0, 1)}
    return sorted(rank for rank in found if 0 <= rank < ranks)
