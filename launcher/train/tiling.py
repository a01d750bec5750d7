"""Long sequences: the MLP of each block in tiles of tokens, so that its wide inner activations exist for one tile at a time.

The ALST recipe (arXiv 2506.13996) with one checkpoint for each tile: unlike DeepSpeed's TiledMLP it needs no list of weights,
leaves the sum of their gradients to autograd, and takes rows with fewer tokens than there are tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from launcher.rundir.order import StageOrder
from launcher.train.building import Skeleton
from launcher.train.families import family_of


def tile_mlps(skeleton: Skeleton, order: StageOrder) -> None:
    """Tiles of about as many tokens as the model is wide, the same number on all ranks: under ZeRO-3 each gathers weights."""
    config = skeleton.model.config.get_text_config()
    family = family_of(config)
    tiles = -(-order.max_tokens // (order.sp * config.hidden_size))
    if tiles == 1 or family.mlp is None:
        return
    for block in skeleton.base.get_submodule(family.blocks):
        mlp = block.get_submodule(family.mlp)
        mlp.forward = partial(_in_tiles, mlp.forward, tiles)


def _in_tiles(whole: Callable[[Tensor], Tensor], tiles: int, x_STH: Tensor) -> Tensor:
    parts = x_STH.tensor_split(tiles, dim=1)
    if not torch.is_grad_enabled():
        return torch.cat([whole(part) for part in parts], dim=1)
    return torch.cat([checkpoint(whole, part, use_reentrant=False) for part in parts], dim=1)
