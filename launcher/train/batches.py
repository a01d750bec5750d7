"""Prepared rows → the micro-batches of one replica, and what each rank of it sees.

S = sequences (of a pair: all chosen, then all rejected), T = tokens. Targets are shifted here, before a sequence is cut into
shards: targets[t] = the token after t, or NO_LOSS.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from launcher.train.mesh import Mesh
from launcher.train.tokenise import NO_LOSS

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch. `goal` says what is scored: (S, T) targets, or (S,) the index of each last token."""

    ids_ST: Tensor
    goal: Tensor
    positions_ST: Tensor | None = None  # only where they do not count from 0
    reference_S: Tensor | None = None  # dpo: nats of each answer under the frozen reference
    num_rows: int
    weight: int  # what the loss is a mean over: target tokens, or pairs

    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.ids_ST, self.goal, self.positions_ST

    def digest(self) -> int:
        """Of everything that the ranks of a replica must agree on."""
        seen = 0
        for tensor in (self.ids_ST, self.goal, self.positions_ST, self.reference_S):
            seen = zlib.crc32(tensor.numpy().tobytes(), seen) if tensor is not None else seen
        return seen

    def on(self, mesh: Mesh) -> Batch:
        """On this rank's device; under sequence parallelism its shard, with positions in the whole sequence."""
        batch = self._shard(mesh) if mesh.sp > 1 else self
        move = {name: getattr(batch, name) for name in ("ids_ST", "goal", "positions_ST", "reference_S")}
        return replace(batch, **{name: value.to(mesh.device) for name, value in move.items() if value is not None})

    def _shard(self, mesh: Mesh) -> Batch:
        length = self.ids_ST.shape[1]
        positions = torch.arange(length).expand(self.ids_ST.shape[0], -1)
        own = slice(mesh.sp_rank * length // mesh.sp, (mesh.sp_rank + 1) * length // mesh.sp)
        goal = self.goal[:, own].contiguous() if self.goal.dim() == 2 else self.goal
        return replace(self, ids_ST=self.ids_ST[:, own].contiguous(), goal=goal, positions_ST=positions[:, own].contiguous())


def language_batch(rows: Sequence[Row], *, pad: int, multiple: int) -> Batch:
    """Rows with input_ids and labels, padded on the right."""
    ids = _padded([row["input_ids"] for row in rows], pad, multiple)
    labels = _padded([row["labels"] for row in rows], NO_LOSS, multiple)
    return _language(ids, labels, len(rows))


def packed_batch(packs: Sequence[Row], *, pad: int, multiple: int) -> Batch:
    """Packs behind each other in one sequence without padding; positions restart at each row of a pack.

    One sequence, because flash attention tells rows apart by their positions only where there is one.
    """
    assert multiple == 1, "the plan refuses packing under sequence parallelism"
    ids = torch.tensor([[token for pack in packs for token in pack["input_ids"]]])
    labels = torch.tensor([[label for pack in packs for label in pack["labels"]]])
    positions = [position for pack in packs for length in pack["seq_lengths"] for position in range(length)]
    return replace(_language(ids, labels, len(packs)), positions_ST=torch.tensor([positions]))


def _language(ids: Tensor, labels: Tensor, num_rows: int) -> Batch:
    targets = F.pad(labels, (0, 1), value=NO_LOSS)[:, 1:].contiguous()
    return Batch(ids_ST=ids, goal=targets, num_rows=num_rows, weight=int((targets != NO_LOSS).sum()))


def scored_pairs(rows: Sequence[Row], *, pad: int, multiple: int) -> Batch:
    """Rows with chosen_ids and rejected_ids, to be scored at their last tokens."""
    sequences = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
    ends = torch.tensor([len(sequence) - 1 for sequence in sequences])
    return Batch(ids_ST=_padded(sequences, pad, multiple), goal=ends, num_rows=len(rows), weight=len(rows))


def answered_pairs(rows: Sequence[Row], *, pad: int, multiple: int) -> Batch:
    """Rows with prompt_ids, chosen_ids and rejected_ids: both answers behind the prompt, targets on the answers only."""
    pairs = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    ids = _padded([[*prompt, *answer] for prompt, answer in pairs], pad, multiple)
    labels = _padded([[NO_LOSS] * len(prompt) + list(answer) for prompt, answer in pairs], NO_LOSS, multiple)
    targets = F.pad(labels, (0, 1), value=NO_LOSS)[:, 1:].contiguous()
    reference = None
    if "reference_chosen" in rows[0]:
        reference = torch.tensor([row[f"reference_{side}"] for side in ("chosen", "rejected") for row in rows])
    return Batch(ids_ST=ids, goal=targets, reference_S=reference, num_rows=len(rows), weight=len(rows))


def _padded(sequences: Sequence[Sequence[int]], value: int, multiple: int) -> Tensor:
    """(S, T) int64, padded on the right to the longest, rounded up to `multiple`."""
    longest = -(-max(map(len, sequences)) // multiple) * multiple
    out = torch.full((len(sequences), longest), value)
    for index, sequence in enumerate(sequences):
        out[index, : len(sequence)] = torch.as_tensor(sequence)
    return out


def micro_batches(rows: Sequence[int], *, micro: int, replica: int, replicas: int) -> Iterator[list[int]]:
    """The row numbers of one replica's micro-batches in one step: the step's rows, dealt out micro-batch by micro-batch."""
    for start in range(replica * micro, len(rows), replicas * micro):
        yield list(rows[start : start + micro])
