"""Ranks: who this process is among the others, and the few collectives that the stories use. DO.

ranks = meet(order)        # first line of every story, before any model
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from launcher.rundir.folder import TENDS
from launcher.rundir.order import StageOrder
from launcher.train.precision import allow_tf32


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process and how many there are. `device` is where its tensors live."""

    rank: int
    local_rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Rank 0: the one that writes."""
        return self.rank == 0


def meet(order: StageOrder) -> Ranks:
    """The ranks of a stage. Collective: returns when all of them are there."""
    return join(order.device, tf32=order.tf32)


def join(kind: str, *, tf32: bool) -> Ranks:
    """Join the process group: gloo for CPU processes (`kind` cpu), nccl for GPUs (cuda). Collective."""
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    transformers_logging.disable_progress_bar()  # a log file is not a terminal
    allow_tf32(tf32)
    if kind == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        # The shared-memory op is compiled at the first collective (a minute), leaves 69 MB per rank in /dev/shm for ever,
        # and its inference_all_reduce ignores the group. gloo gives the same results.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        device = torch.device("cpu")
    else:
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    backend = "gloo" if kind == "cpu" else "nccl"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return Ranks(rank=rank, local_rank=local_rank, world=dist.get_world_size(), device=device)


def tends() -> bool:
    """True on the one rank of each disk that makes, renames and removes folders there: rank 0 alone where all share one."""
    return dist.get_rank() == 0 or (os.environ.get("LOCAL_RANK") == "0" and os.environ.get(TENDS) == "1")


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def broadcast(value: Any, *, source: int = 0) -> Any:
    """`value` of the source rank, on every rank. For small picklable things."""
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def wait_for_first(value: Any, patient: dist.ProcessGroup) -> Any:
    """`value` of rank 0, on every rank, however long it takes: writing and hashing a large model outlasts nccl's patience."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=patient, device=torch.device("cpu"))
    return box[0]


def patient_group() -> dist.ProcessGroup:
    """All ranks, for waits of hours. Collective: made while everybody is there."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=1))


def gather(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank. For small picklable things."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_first(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on rank 0; an empty list on the others."""
    values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values, dst=0)
    return values or []


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over the ranks, float64."""
    summed = values.detach().to(torch.float64).clone()
    dist.all_reduce(summed)
    return summed


def leave() -> None:
    """Wait for all ranks, then end the process group: nobody's last message is cut off by another one's exit."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
