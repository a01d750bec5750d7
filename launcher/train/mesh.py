"""Mesh: where this rank stands in the four degrees of parallelism, and the groups it shares work with. DO.

Ranks are numbered with the tensor axis fastest: rank = ((pp_rank x dp + dp_rank) x sp + sp_rank) x tp + tp_rank. A replica is
the tp x pp x sp ranks that work on the same rows; there are dp of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import deepspeed.runtime.sequence_parallel.parallel_state_sp as sequence_state
import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.utils import groups

from launcher.rundir.order import StageOrder
from launcher.train.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Degrees, this rank's place on each axis, and its group along it; a group is None where the degree is 1."""

    dp: int
    tp: int
    pp: int
    sp: int
    dp_rank: int
    tp_rank: int
    pp_rank: int
    sp_rank: int
    tp_group: dist.ProcessGroup | None
    sp_group: dist.ProcessGroup | None
    zero_group: dist.ProcessGroup | None  # ranks that ZeRO splits states over: dp x sp of them; None: all ranks
    device: torch.device
    mpu: Any  # what deepspeed.initialize takes; None where there is only data parallelism, or a pipeline brings its own

    @property
    def first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def last_stage(self) -> bool:
        return self.pp_rank == self.pp - 1

    @property
    def scores(self) -> bool:
        """One rank of each replica: the one whose figures count. It holds the loss, so it stands in the last stage."""
        return self.last_stage and self.tp_rank == 0 and self.sp_rank == 0

    def text(self) -> str:
        """`dp 2 x tp 2`, degrees of 1 left out."""
        degrees = [("dp", self.dp), ("tp", self.tp), ("pp", self.pp), ("sp", self.sp)]
        return " x ".join(f"{name} {degree}" for name, degree in degrees if degree > 1 or name == "dp")


def make_mesh(order: StageOrder, ranks: Ranks) -> Mesh:
    """The mesh of one stage. Collective: every rank makes the same groups in the same order."""
    places = {"tp": ranks.rank % order.tp, "sp": ranks.rank // order.tp % order.sp}
    replica = ranks.rank // (order.tp * order.sp)
    tp_group, sp_group, zero_group, mpu = None, None, None, None
    if order.pp > 1:
        tp_group = _pipeline_tensor_group(order, ranks)
        zero_group = _data_group(order, ranks)
    elif order.tp > 1:
        groups._init_tp_mesh_device(tensor_model_parallel_size=order.tp)
        tp_group, zero_group, mpu = groups.get_tensor_model_parallel_group(), groups.get_data_parallel_group(), groups
    elif order.sp > 1:
        sequence_state.initialize_sequence_parallel(order.sp)
        sp_group, mpu = sequence_state.get_sequence_parallel_group(), sequence_state
    return Mesh(
        dp=order.dp,
        tp=order.tp,
        pp=order.pp,
        sp=order.sp,
        dp_rank=replica % order.dp,
        tp_rank=places["tp"],
        pp_rank=replica // order.dp,
        sp_rank=places["sp"],
        tp_group=tp_group,
        sp_group=sp_group,
        zero_group=zero_group,
        device=ranks.device,
        mpu=mpu,
    )


def pipeline_topology(mesh: Mesh) -> PipeModelDataParallelTopology:
    """DeepSpeed's names of the same numbering: pipe, data, model."""
    return PipeModelDataParallelTopology(num_pp=mesh.pp, num_mp=mesh.tp, num_dp=mesh.dp)


def _pipeline_tensor_group(order: StageOrder, ranks: Ranks) -> dist.ProcessGroup | None:
    """The pipeline's grid makes such a group too, but only after the layers, which need it, are built."""
    if order.tp == 1:
        return None
    starts = range(0, order.world, order.tp)
    made = {start: dist.new_group(list(range(start, start + order.tp))) for start in starts}
    return made[ranks.rank // order.tp * order.tp]


def _data_group(order: StageOrder, ranks: Ranks) -> dist.ProcessGroup:
    """Ranks with the same stage and the same shard."""
    members = order.dp * order.tp
    made = {}
    for stage in range(order.pp):
        for shard in range(order.tp):
            made[stage, shard] = dist.new_group(list(range(stage * members + shard, (stage + 1) * members, order.tp)))
    return made[ranks.rank // members, ranks.rank % order.tp]
