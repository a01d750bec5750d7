"""(engine, pieces) → the flat fp32 masters that this rank's optimizer steps, and where the pieces lie in them.

Each of DeepSpeed 0.19.8's wrappers gives torch's AdamW other tensors to step: the parameters themselves (fp32, ZeRO 0), one
flat partition of each parameter group (ZeRO 1, 2 and BF16_Optimizer), one of each sub-group (ZeRO 3). Adam's step count,
exp_avg and exp_avg_sq lie in the optimizer's state under that tensor. What differs between the wrappers is only here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from launcher.train.pieces import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Elements start … start + numel - 1 of the piece's flat local tensor stand at `offset` of a flat master."""

    piece: Piece
    start: int
    numel: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Master:
    """One flat fp32 tensor that Adam steps on this rank. Under NVMe offload it and its moments are only there while held."""

    number: int
    tensor: Tensor
    adam: torch.optim.Optimizer
    group: dict[str, Any]  # Adam's settings
    places: tuple[Place, ...]

    def step(self) -> int:
        """Adam steps taken; 0 before the first one, when there are no moments yet either."""
        state = self.adam.state.get(self.tensor)
        return int(state["step"]) if state else 0

    def read(self, place: Place, state: str) -> Tensor:
        """The place's stretch of "master", "exp_avg" or "exp_avg_sq", a view where there is one."""
        if state == "master":
            return self._flat().narrow(0, place.offset, place.numel)
        moments = self.adam.state.get(self.tensor)
        if not moments:
            return torch.zeros(place.numel, dtype=torch.float32)
        return moments[state].detach().view(-1).narrow(0, place.offset, place.numel)

    def write(self, place: Place, state: str, values: Tensor) -> None:
        flat = self._flat() if state == "master" else self._moments()[state].view(-1)
        flat.narrow(0, place.offset, place.numel).copy_(values)

    def set_step(self, step: int) -> None:
        moments = self._moments()
        if torch.is_tensor(moments["step"]):
            moments["step"].fill_(step)
        else:
            moments["step"] = step

    def _flat(self) -> Tensor:
        return self.tensor.detach().view(-1)

    def _moments(self) -> dict[str, Any]:
        """Adam's state of this tensor; a fresh one is made as its own first step makes it (torch/optim/adamw.py)."""
        if not self.adam.state.get(self.tensor):
            beside = self.group.get("fused") or self.group.get("capturable")
            step: Tensor | int = torch.zeros((), dtype=torch.float32, device=self.tensor.device if beside else "cpu")
            if not isinstance(self.adam, torch.optim.AdamW):
                step = 0  # DeepSpeedCPUAdam counts in a plain number
            moments = {name: torch.zeros_like(self.tensor.detach()) for name in ("exp_avg", "exp_avg_sq")}
            self.adam.state[self.tensor] = {"step": step, **moments}
        return self.adam.state[self.tensor]


def masters_of(engine: deepspeed.DeepSpeedEngine, pieces: Sequence[Piece]) -> list[Master]:
    """All of this rank, those of a PipelineEngine's stage as well; places in the order of the pieces."""
    optimizer, trained = engine.optimizer, [piece for piece in pieces if piece.weight.requires_grad and prod(piece.local_shape)]
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _of_sub_groups(optimizer, trained)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return _of_partitions(optimizer, optimizer.single_partition_of_fp32_groups, trained)
    if isinstance(optimizer, BF16_Optimizer):
        return _of_partitions(optimizer, optimizer.fp32_groups_flat_partition, trained)
    assert isinstance(optimizer, torch.optim.Optimizer), f"{type(optimizer).__name__}: 16 bit needs ZeRO 1 or more (E553)"
    return _of_parameters(optimizer, trained)


def split_over_ranks(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether the masters of a data-parallel group are stretches of one whole; at ZeRO 0 they are equal copies."""
    return not isinstance(engine.optimizer, torch.optim.Optimizer)


def _of_parameters(adam: torch.optim.Optimizer, pieces: Sequence[Piece]) -> list[Master]:
    groups = {id(parameter): group for group in adam.param_groups for parameter in group["params"]}
    masters = []
    for number, piece in enumerate(pieces):
        weight = piece.weight
        place = Place(piece=piece, start=0, numel=weight.numel(), offset=0)
        masters.append(Master(number=number, tensor=weight, adam=adam, group=groups[id(weight)], places=(place,)))
    return masters


def _of_partitions(optimizer: Any, partitions: Sequence[Tensor], pieces: Sequence[Piece]) -> list[Master]:
    places: dict[int, list[Place]] = {}
    for piece in pieces:
        link = piece.weight._hp_mapping  # None where other ranks own all of it (deepspeed/utils/mixed_precision_linkage.py:76)
        if link is not None:
            at = link.lp_fragment_address
            place = Place(piece=piece, start=at.start, numel=at.numel, offset=link.hp_fragment_address.start)
            places.setdefault(link.param_group_index, []).append(place)
    return [
        Master(
            number=number,
            tensor=tensor,
            adam=optimizer.optimizer,
            group=optimizer.param_groups[number],
            places=tuple(places.get(number, ())),
        )
        for number, tensor in enumerate(partitions)
    ]


def _of_sub_groups(optimizer: DeepSpeedZeroOptimizer_Stage3, pieces: Sequence[Piece]) -> list[Master]:
    places: dict[int, list[Place]] = {}
    for piece in pieces:
        weight = piece.weight
        number, offset, share = optimizer.grad_position[weight.ds_id]
        start = dist.get_rank(weight.ds_process_group) * share
        numel = min(share, weight.ds_numel - start)  # the last ranks' shares are filled up
        if numel > 0:
            places.setdefault(number, []).append(Place(piece=piece, start=start, numel=numel, offset=offset))
    masters = []
    for number, tensor in enumerate(optimizer.fp32_partitioned_groups_flat):
        adam = optimizer.optimizer
        if hasattr(optimizer, "backup_optimizer") and optimizer.subgroup_to_device[number] != "cpu":
            adam = optimizer.backup_optimizer  # the part that offload with a ratio leaves on the GPU (zero/stage3.py:1256)
        group = optimizer.param_groups[optimizer.sub_group_to_group_id[number]]
        held = tuple(places.get(number, ()))
        masters.append(Master(number=number, tensor=tensor, adam=adam, group=group, places=held))
    return masters


@contextmanager
def held(engine: deepspeed.DeepSpeedEngine, master: Master) -> Iterator[None]:
    """The master is in memory inside, to be read. Not collective."""
    optimizer, swapped = engine.optimizer, _on_nvme(engine.optimizer, master)
    if swapped:
        optimizer._optimizer_states_and_gradient_swap_in(master.number)
    yield
    if swapped:
        optimizer._release_swap_buffers(master.number)


@contextmanager
def held_for_change(engine: deepspeed.DeepSpeedEngine, master: Master) -> Iterator[None]:
    """The master is in memory inside; behind it this rank's share of the model's weights is its cast. Not collective."""
    optimizer, swapped = engine.optimizer, _on_nvme(engine.optimizer, master)
    if swapped:
        optimizer._optimizer_states_and_gradient_swap_in(master.number)
    yield
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer._reassign_or_swap_out_partitioned_parameters(master.number)
    if swapped:
        optimizer._optimizer_states_and_gradient_swap_out(master.number)


def _on_nvme(optimizer: Any, master: Master) -> bool:
    return isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3) and optimizer._swappable_optimizer_subgroup(master.number)


@contextmanager
def changing(engine: deepspeed.DeepSpeedEngine) -> Iterator[None]:
    """Masters are changed inside; behind it every rank's model computes with the new weights. Collective."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.checkpoint_event_prologue()  # no weight is gathered meanwhile
        yield
        optimizer.checkpoint_event_epilogue()  # those that are kept whole are gathered again
    else:
        yield
        if isinstance(optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
            optimizer.update_lp_params()
