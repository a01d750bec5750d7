"""A model on fake tensors -> bytes that autograd keeps of one block for its backward pass, as this software does on a CPU. DO.

tests/stages/test_blueprints.py compares known families with what plan/kept.py counts, to the byte.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from launcher.train.blueprint_block import inputs_of, outputs_of, without_masks

ROWS, TOKENS = 2, 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # fp16 keeps what bf16 does
KERNELS = ("sdpa", "eager")
RANK, DROPOUT = 1, 0.5

Build = Callable[[torch.dtype, str], PreTrainedModel]  # dtype and attention -> a model of at least three blocks


def kept_by_block(build: Build, blocks: str) -> list[dict[str, object]]:
    """One row for each precision, kernel and what is trained: bytes of a token, and bytes of a token for each token of its row.

    `blocks`: where they are in the model. With an adapter the products of its rank are left out: the plan knows the rank.
    """
    rows: list[dict[str, object]] = []
    for precision, dtype in DTYPES.items():
        for kernel in KERNELS:
            model = build(dtype, kernel)
            rows.append(_row(model, blocks, precision, kernel, "all"))
            adapted = adapt(model.get_submodule(f"{blocks}.1"), model)
            products = dtype.itemsize * RANK * len(adapted)
            rows.append(_row(model, blocks, precision, kernel, "adapter with dropout", less=products))
            for one in adapted:
                one.dropout.p = 0.0
            rows.append(_row(model, blocks, precision, kernel, "adapter", less=products))
    return rows


def _row(model: PreTrainedModel, blocks: str, precision: str, kernel: str, trained: str, *, less: int = 0) -> dict[str, object]:
    """What does not grow with the tokens (Gemma's 1 + weight) falls out of the differences. One row alone is copied less."""
    once = _saved(model, blocks, ROWS, TOKENS)
    more_rows, longer = (_saved(model, blocks, *size) - once for size in ((2 * ROWS, TOKENS), (ROWS, 2 * TOKENS)))
    by_row_token = (longer - more_rows) / (2 * ROWS * TOKENS**2)
    of_token = more_rows / (ROWS * TOKENS) - by_row_token * TOKENS - less
    kept = {"bytes": of_token, "bytes_by_row_token": by_row_token}
    return {"precision": precision, "attention": kernel, "trained": trained, **kept}


class _EnoughError(Exception):
    """The second block has run."""


def _saved(model: PreTrainedModel, blocks: str, rows: int, tokens: int) -> int:
    """Bytes that autograd saves while the second block runs, each storage once; weights and buffers are there anyway.

    Nothing of the first block is saved anew, so that the second one is as every other.
    """
    sizes: dict[int, int] = {}
    held: list[object] = []  # so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        sizes.setdefault(storage._cdata, storage.nbytes())
        return tensor

    def begins(*_: object) -> None:
        sizes.update(dict.fromkeys(sizes, 0))

    def ends(*_: object) -> None:
        raise _EnoughError

    second, third = (model.get_submodule(f"{blocks}.{layer}") for layer in (1, 2))
    hooks = second.register_forward_pre_hook(begins), third.register_forward_pre_hook(ends)
    with without_masks(), suppress(_EnoughError), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held.append(model.base_model(input_ids=torch.zeros(rows, tokens, dtype=torch.long), use_cache=False))
    for hook in hooks:
        hook.remove()
    for own in (*model.parameters(), *model.buffers()):
        sizes.pop(own.untyped_storage()._cdata, None)
    return sum(sizes.values())


class Adapted(nn.Module):
    """A frozen matrix and LoRA beside it, with peft's operations: peft itself takes seconds to import and no fake tensors."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen, self.dropout, dtype = frozen, nn.Dropout(DROPOUT), frozen.weight.dtype
        self.lora_A = nn.Linear(inputs_of(frozen), RANK, bias=False, dtype=dtype)
        self.lora_B = nn.Linear(RANK, outputs_of(frozen), bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.lora_B(self.lora_A(self.dropout(x))) * 2.0


def adapt(block: nn.Module, model: PreTrainedModel) -> list[Adapted]:
    """Every matrix of the block gets an adapter; everything else of the model is frozen, but what reaches the block."""
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)  # as the adapters of the blocks below: gradients pass through this one
    found = [(parent, name, module) for parent in block.modules() for name, module in parent.named_children()]
    adapted = []
    for parent, name, module in found:
        if isinstance(module, nn.Linear | Conv1D):
            setattr(parent, name, Adapted(module))
            adapted.append(getattr(parent, name))
    return adapted
