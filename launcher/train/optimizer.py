"""(trained parameters, stage's numbers) → the Adam that DeepSpeed steps. The same update for every layout and offload.

torch's fused AdamW everywhere: on the host it is as fast as DeepSpeedCPUAdam (1.1 against 1.3 ns a parameter on one core, 1.4
against 1.0 on two), and nothing has to be compiled. Only offload with a ratio insists on DeepSpeed's class
(deepspeed/runtime/zero/stage3.py:316). No scheduler: the loop sets the rate before each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import nn

Group = dict[str, Any]


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """Trained parameters in two groups: matrices decay, norms and biases do not. Empty groups are left out."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trained if _num_dims(parameter) >= 2]
    rest = [parameter for parameter in trained if _num_dims(parameter) < 2]
    groups = ({"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _num_dims(parameter: nn.Parameter) -> int:
    """Under ZeRO-3 a partitioned matrix looks like an empty vector: its real shape is ds_shape."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def twin_flow(config: Mapping[str, Any]) -> bool:
    """Whether a DeepSpeed config leaves a part of the optimizer's work on the GPU."""
    offload = config["zero_optimization"].get("offload_optimizer", {})
    return offload.get("device") == "cpu" and offload.get("ratio", 1.0) < 1.0


def make_optimizer(
    groups: list[Group], config: Mapping[str, Any], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """Decoupled weight decay, as the groups say; states in fp32. `config`: what deepspeed.initialize is given."""
    if twin_flow(config):
        return DeepSpeedCPUAdam(groups, lr=lr, betas=betas, eps=eps, adamw_mode=True)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def set_rate(engine: Any, lr: float) -> None:
    """The learning rate of the next steps. Set anew before each, so a resume needs no scheduler state."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def tie_twins(engine: Any) -> None:
    """Give the two optimizers of offload with a ratio one set of groups and states. Nothing to do without a ratio.

    DeepSpeed 0.19.8 copies the rate of the first group when it makes the second optimizer (runtime/zero/stage3.py:317): what
    a schedule sets later reaches the part on the host only. Its own checkpoints leave that optimizer's moments out, too.
    """
    twin = getattr(engine.optimizer, "backup_optimizer", None)
    if twin is None:
        return
    host = engine.optimizer.optimizer
    for group in host.param_groups:
        for name, value in twin.defaults.items():
            group.setdefault(name, value)
    twin.param_groups[:] = host.param_groups
    twin.state = host.state
