"""The tiny model, rows and loops of the trap tests: one process of plain PyTorch against ranks of raw DeepSpeed.

Both run inside the forked ranks and hand back numbers. SGD, because Adam does not show a gradient of a wrong size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn

from tests.stages.harness import run_ranks

VOCAB, TOKENS, ROWS, STEPS, LR = 64, 16, 8, 4, 0.5
CLOSE = 1e-5  # what the losses of correct runs differ by at most, in fp32; measured: 1e-6
BF16 = {"bf16": {"enabled": True}}
WIDE = {"hidden_size": 1024, "intermediate_size": 2048}  # of ten matrices each of two ranks has 1 MiB: DeepSpeed swaps them
# As dsconfig renders it: nothing is read ahead from a disk, and nothing keeps its buffer for its next use.
ONE_BY_ONE: Mapping[str, Any] = MappingProxyType({"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Loss and gradient norm of every step (before clipping; 0 where DeepSpeed tells none), weights after the last one."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def first(function: Callable[..., Any], *args: Any, world: int = 2) -> Any:
    """What rank 0 returned."""
    return run_ranks(_together, function, args, world=world)[0]


def _together(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Rank 0 holds the store with which others may still be making their groups: nobody leaves before all have come so far."""
    value = function(*args)
    if dist.is_initialized():
        dist.barrier()
    return value


def each(function: Callable[..., Any], *cases: Any, world: int = 2) -> list[Any]:
    """What rank 0 returned for each case, given as a tuple of arguments or a single one; one fork for all of them."""
    return first(_in_turn, function, cases, world=world)


def _in_turn(function: Callable[..., Any], cases: tuple[Any, ...]) -> list[Any]:
    return [function(*case) if isinstance(case, tuple) else function(case) for case in cases]


def make_model(family: str = "Llama", *, seed: int = 0, **changes: Any) -> nn.Module:
    """A causal language model of two layers; the same weights for the same seed."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
        "use_cache": False,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{family}Config")(**{**sizes, **changes})
    return getattr(transformers, f"{family}ForCausalLM")(config).train()


def make_batches(steps: int = STEPS, *, seed: int = 1) -> list[Tensor]:
    """Rows of counted-on tokens: learnable, none is a pad."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, VOCAB, (steps, ROWS, 1), generator=draw)
    strides = torch.randint(1, 5, (steps, ROWS, 1), generator=draw)
    return list((starts + strides * torch.arange(TOKENS)) % (VOCAB - 1) + 1)


def ds_config(zero: int, *, clip: float = 0.0, zero_section: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """A config that leaves the optimizer to the caller; one micro-batch a step unless `sections` say otherwise."""
    return {
        "train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": zero, **(zero_section or {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": clip,
        "steps_per_print": 10**9,
        **sections,
    }


def on_a_disk(folder: Path, section: Mapping[str, Any] = ONE_BY_ONE, **settings: Any) -> dict[str, Any]:
    """zero_optimization of ZeRO 3 with parameters in swap files below `folder`."""
    buffers = {"buffer_size": 5_000_000, "buffer_count": 10}  # weights_of gathers all at once
    disk = {"device": "nvme", "nvme_path": str(folder), "pin_memory": True, "max_in_cpu": 0, **buffers}
    return {"offload_param": disk | settings, **section}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def meet() -> int:
    """Join the process group once; this rank's number."""
    if not dist.is_initialized():
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    return dist.get_rank()


def initialize(model: nn.Module, config: dict[str, Any], *, optimizer: Any = None, **more: Any) -> Any:
    """DeepSpeed's engine; SGD unless the caller has another optimizer."""
    meet()
    return deepspeed.initialize(model=model, optimizer=optimizer or sgd(model), config=config, **more)[0]


def train_alone(model: nn.Module, batches: list[Tensor], *, optimizer: Any = None, clip: float = 0.0, **inputs: Any) -> Trained:
    """What is right: one process, plain PyTorch. `labels` among the inputs replace the rows themselves."""
    optimizer = optimizer or sgd(model)
    losses, norms = [], []
    for batch in batches:
        loss = model(**{"input_ids": batch, "labels": batch, **inputs}).loss
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Trained(losses=losses, norms=norms, weights=weights_of(model))


def train_engine(engine: Any, batches: list[Tensor], *, dp: int | None = None, dp_rank: int | None = None) -> Trained:
    """The same steps through a DeepSpeed engine, on this replica's rows; without `dp` every rank is a replica."""
    dp = dist.get_world_size() if dp is None else dp
    dp_rank = dist.get_rank() if dp_rank is None else dp_rank
    losses, norms = [], []
    for batch in batches:
        mine = batch.chunk(dp)[dp_rank]
        loss = engine(input_ids=mine, labels=mine).loss
        engine.backward(loss)
        engine.step()
        losses.append(mean_over_ranks(loss))
        norms.append(norm_of(engine))
    return Trained(losses=losses, norms=norms, weights=weights_of(engine.module))


def mean_over_ranks(loss: Tensor) -> float:
    seen = loss.detach().float().clone()
    dist.all_reduce(seen)
    return seen.item() / dist.get_world_size()


def norm_of(engine: Any) -> float:
    return float(engine.get_global_grad_norm() or 0.0)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """fp32 copies of this rank's parameters by name; gathered under ZeRO-3."""
    parameters = dict(module.named_parameters())
    parted = [parameter for parameter in parameters.values() if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(parted):
        return {name: parameter.detach().float().clone() for name, parameter in parameters.items()}


def loss_error(got: Trained, right: Trained) -> float:
    """Largest difference of a step's loss."""
    return max(abs(a - b) for a, b in zip(got.losses, right.losses, strict=True))


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


class TwoLayers(nn.Module):
    """The mean square of two linear layers, or of the first one alone: a step that does not use every weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lower, self.upper = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, rows_S4: Tensor, both: bool = True) -> Tensor:
        lower_S4 = self.lower(rows_S4)
        return (self.upper(lower_S4) if both else lower_S4).square().mean()


def two_rows() -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
