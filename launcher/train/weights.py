"""A model folder's weights, one tensor at a time: names, shapes, values. Nothing is read before it is asked for. DO.

A tensor that the folder does not have is drawn where it may be new (a reward head, an adapter): from (seed, name), so that
every layout draws the same one.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from launcher.errors import LauncherError, Problem
from launcher.train.families import stored_name
from launcher.train.pieces import Cut

# Buffers that old checkpoints carry among their weights; today's models compute them.
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|rope\.inv_freq)$")
FLOATS = ("F16", "BF16", "F32", "F64")
# What a language model has and a scoring model has not: expected to be left over, never anything else.
LM_HEADS = ("lm_head.", "embed_out.", "model.lm_head.")


class Weights:
    """The safetensors of one folder. Use as a context manager: the files are mapped, not read."""

    def __init__(self, folder: Path, model: PreTrainedModel):
        self.folder = folder
        self._prefix, self._config = f"{model.base_model_prefix}.", model.config
        self._stack = ExitStack()
        self._files = _files_of(folder)
        self._open: dict[str, safe_open] = {}

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def stored_name(self, name: str) -> str | None:
        """The folder's name of a weight: with the base model's prefix, or without it (GPT-2's first checkpoints)."""
        bare = name.removeprefix(self._prefix)
        names = (stored_name(self._config, name), name, bare, self._prefix + name)
        return next((known for known in names if known in self._files), None)

    def read(self, name: str, cut: Cut | None = None) -> torch.Tensor:
        """The tensor, or what `cut` takes of it (only that is read), on the CPU, in the dtype it is stored in.

        Without a cut a view into the mapped file. KeyError where the folder does not have it.
        """
        stored = self.stored_name(name)
        if stored is None:
            raise KeyError(name)
        file = self._file(self._files[stored])
        if cut is None:
            return file.get_tensor(stored)
        lazy, before = file.get_slice(stored), (slice(None),) * cut.dim
        return torch.cat([lazy[(*before, slice(start, stop))] for start, stop in cut.ranges], dim=cut.dim)

    def _file(self, file: str) -> safe_open:
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(self.folder / file, framework="pt"))
        return self._open[file]

    def check(self, model: PreTrainedModel, *, new: frozenset[str]) -> None:
        """E556 unless every weight of `model` is there in its shape, except those that may be `new`, and none is left over."""
        wanted = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        missing = sorted(name for name in wanted if name not in new and self.stored_name(name) is None)
        used = {self.stored_name(name) for name in wanted} | {self.stored_name(name) for name, _ in model.named_buffers()}
        used |= {self.stored_name(name) for name in (model._tied_weights_keys or {})}
        spare = LM_HEADS if new else ()
        left = sorted(
            name for name in self._files if name not in used and not COMPUTED.search(name) and not name.startswith(spare)
        )
        there = {name: shape for name, shape in wanted.items() if self.stored_name(name)}
        shapes = sorted(
            f"{name} {self._shape(name)} instead of {there[name]}" for name in there if self._shape(name) != there[name]
        )
        codes = sorted(f"{name} {self._dtype(name)}" for name in there if self._dtype(name) not in FLOATS)
        refuse_misfits(
            self.folder,
            {
                "missing": missing,
                "left over": left,
                "of another shape": shapes,
                "not of 16, 32 or 64 bit floating point": codes,
            },
        )

    def _dtype(self, name: str) -> str:
        stored = self.stored_name(name)
        assert stored is not None
        return str(self._file(self._files[stored]).get_slice(stored).get_dtype())

    def _shape(self, name: str) -> tuple[int, ...]:
        stored = self.stored_name(name)
        assert stored is not None
        return tuple(self._file(self._files[stored]).get_slice(stored).get_shape())


def refuse_misfits(folder: Path, names: Mapping[str, Sequence[str]]) -> None:
    """E556 where a folder's weights do not fit its model: names of tensors by what is wrong with them, three of each told."""
    parts = [
        f"{len(some)} {what}: {', '.join(some[:3])}{' …' if len(some) > 3 else ''}" for what, some in names.items() if some
    ]
    if not parts:
        return
    hint = "a new head may be missing, everything else must be there; check that config.json belongs to the weights"
    what = f"weights do not fit the model ({'; '.join(parts)})"
    raise LauncherError(Problem(code="E556", where=str(folder), what=what, hint=hint))


def _files_of(folder: Path) -> dict[str, str]:
    """Name of every tensor -> the file it is in."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path.name)
    if not found:
        hint = "convert the model: load it with transformers and save_pretrained it"
        raise LauncherError(Problem(code="E556", where=str(folder), what="no *.safetensors file is there", hint=hint))
    return found


def drawn(name: str, shape: tuple[int, ...], *, seed: int, std: float) -> torch.Tensor:
    """A new weight, fp32 on the CPU: zeros for lora_B, LoRA's uniform for lora_A (arXiv 2106.09685), else normal with `std`."""
    if ".lora_B." in name:
        return torch.zeros(shape)
    # torch's CPU generator looks at the lowest 32 bits of its seed only: both go into them
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    if ".lora_A." in name:
        bound = 1 / math.sqrt(shape[1])  # kaiming uniform with a = sqrt(5), as peft draws it
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return torch.empty(shape).normal_(0, std, generator=generator)
