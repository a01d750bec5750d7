"""Fragments: stretches of weights and their Adam states on disk, from which any part of any whole weight is put together.

    index.json            {"schema", "step", "scale", "extra", "weights": {name: {"shape", "fragments": [...]}}}
    rank<N>.safetensors   <state>/<name>: the flat float32 stretch that rank N owned; the index says where it stands

A fragment lies in the flat local tensor of the rank that wrote it; its cut says how that tensor is taken from the whole one.
The reader knows nothing of engines: save and load under any layout meet here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from launcher.train.pieces import Cut

INDEX = "index.json"
SCHEMA = 1
STATES = ("master", "exp_avg", "exp_avg_sq")
FLOAT32_BYTES = 4
OPEN_FILES = 64  # at once, of a checkpoint with a file for each of many ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """Elements start … start + numel - 1 of one rank's flat local tensor, for each of STATES, after `step` Adam steps."""

    name: str
    shape: tuple[int, ...]  # of the whole weight
    cut: Cut | None
    start: int
    numel: int
    step: int
    file: str

    @property
    def stop(self) -> int:
        return self.start + self.numel

    @property
    def span(self) -> tuple[int, int]:
        """First and last + 1 element of the flat whole weight that it touches."""
        return span(self.cut, self.shape, self.start, self.stop)


def key(state: str, name: str) -> str:
    return f"{state}/{name}"


# --- cuts ----------------------------------------------------------------------------------------------------------


def span(cut: Cut | None, shape: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """Interval of the flat whole tensor around elements start … stop - 1 of the flat local one. Sound, not always tight."""
    if cut is None or start == stop:
        return start, stop
    if list(cut.ranges) != sorted(cut.ranges):
        return 0, math.prod(shape)
    return _place(cut, shape, start), _place(cut, shape, stop - 1) + 1


def _place(cut: Cut, shape: Sequence[int], index: int) -> int:
    """Where element `index` of the flat local tensor stands in the flat whole one."""
    inner = math.prod(shape[cut.dim + 1 :])
    size = sum(stop - start for start, stop in cut.ranges)
    outer, rest = divmod(index, size * inner)
    along, within = divmod(rest, inner)
    for start, stop in cut.ranges:
        if along < stop - start:
            return (outer * shape[cut.dim] + start + along) * inner + within
        along -= stop - start
    raise AssertionError("the index is inside the local tensor")


def _apart(one: Cut | None, other: Cut | None) -> bool:
    """Two cuts along the same dimension that have no range in common."""
    if one is None or other is None or one.dim != other.dim:
        return False
    return all(a >= d or c >= b for a, b in one.ranges for c, d in other.ranges)


def flaw(fragments: Sequence[Fragment], shape: tuple[int, ...]) -> str | None:
    """Why these are not exactly one whole weight of this shape, each element once; None where they are."""
    if not fragments:
        return "has no fragments"
    for fragment in fragments:
        if fragment.shape != shape:
            return f"has shape {fragment.shape} instead of {shape}"
    cuts = list(dict.fromkeys(fragment.cut for fragment in fragments))
    for cut in cuts:
        stretches = [(one.start, one.stop) for one in fragments if one.cut == cut]
        if not _tile(stretches, math.prod(cut.shape_of(shape) if cut else shape)):
            return f"has gaps or doubles in its {len(stretches)} fragments"
    if cuts == [None]:
        return None
    if None in cuts or len({cut.dim for cut in cuts}) > 1:
        return "is cut in several ways"
    if not _tile([bounds for cut in cuts for bounds in cut.ranges], shape[cuts[0].dim]):
        return f"has gaps or doubles in its {len(cuts)} cuts"
    return None


def _tile(stretches: Iterable[tuple[int, int]], total: int) -> bool:
    """Whether they cover 0 … total - 1 without gap and overlap."""
    ends = [(0, 0), *sorted(one for one in stretches if one[0] < one[1]), (total, total)]
    return all(before[1] == after[0] for before, after in pairwise(ends))


# --- files ---------------------------------------------------------------------------------------------------------


def write_tensors(path: Path, sizes: Mapping[str, int], tensors: Iterable[Tensor]) -> None:
    """A safetensors file of flat float32 tensors, written one by one: states of a GPU or of NVMe need not fit into memory."""
    header, end = {}, 0
    for name, numel in sizes.items():
        header[name] = {"dtype": "F32", "shape": [numel], "data_offsets": [end, end + FLOAT32_BYTES * numel]}
        end += FLOAT32_BYTES * numel
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, numel), tensor in zip(sizes.items(), tensors, strict=True):
            assert tensor.dtype == torch.float32, (name, tensor.dtype)
            assert tensor.numel() == numel, (name, tensor.numel(), numel)
            file.write(tensor.detach().cpu().contiguous().numpy().data)


def index_of(fragments: Sequence[Fragment]) -> dict[str, object]:
    """The index's "weights"."""
    weights: dict[str, dict] = {}
    for one in sorted(fragments, key=lambda one: (one.name, one.file)):
        entry = weights.setdefault(one.name, {"shape": one.shape, "fragments": []})
        cut = None if one.cut is None else {"dim": one.cut.dim, "ranges": one.cut.ranges}
        entry["fragments"].append({"file": one.file, "cut": cut, "start": one.start, "numel": one.numel, "step": one.step})
    return weights


def fragments_of(weights: Mapping[str, Mapping]) -> dict[str, list[Fragment]]:
    """The fragments of each weight, from the index's "weights". KeyError or TypeError where it is no index."""
    return {
        name: [
            Fragment(name=name, shape=tuple(entry["shape"]), **{**told, "cut": _cut(told["cut"])})
            for told in entry["fragments"]
        ]
        for name, entry in weights.items()
    }


def _cut(told: Mapping | None) -> Cut | None:
    return None if told is None else Cut(dim=told["dim"], ranges=tuple((start, stop) for start, stop in told["ranges"]))


class Reader:
    """Reads stretches of whole weights out of a checkpoint's files; only what overlaps is touched."""

    def __init__(self, folder: Path, weights: Mapping[str, list[Fragment]]):
        self._weights = weights
        self._open: Callable[[str], safe_open] = lru_cache(maxsize=OPEN_FILES)(lambda file: safe_open(folder / file, "pt"))

    def read(self, name: str, state: str, *, cut: Cut | None, start: int, numel: int) -> Tensor:
        """Elements start … start + numel - 1 of the flat local tensor that `cut` takes from the whole weight.

        OSError or SafetensorError where a file is not what the index says.
        """
        told = self._weights[name]
        mine = [one for one in told if one.cut == cut]
        if mine:
            return self._stretch(state, mine, start, start + numel)
        shape = told[0].shape
        near = [one for one in told if not _apart(one.cut, cut)]
        whole = self._assembled(state, near, span(cut, shape, start, start + numel))
        local = cut.of(whole.view(shape)) if cut else whole
        return local.flatten()[start : start + numel]

    def _assembled(self, state: str, fragments: Sequence[Fragment], needed: tuple[int, int]) -> Tensor:
        """The flat whole weight, filled in at least where it is needed."""
        shape = fragments[0].shape
        whole = torch.empty(math.prod(shape))
        for cut in dict.fromkeys(one.cut for one in fragments):
            met = [one for one in fragments if one.cut == cut and _meet(one.span, needed)]
            if cut is None:
                for one in met:
                    start, stop = max(one.start, needed[0]), min(one.stop, needed[1])
                    whole[start:stop] = self._part(state, one, start, stop)
            elif met:
                local = torch.empty(math.prod(cut.shape_of(shape)))
                for one in met:
                    local[one.start : one.stop] = self._part(state, one, one.start, one.stop)
                cut.put(whole.view(shape), local.view(cut.shape_of(shape)))
        return whole

    def _stretch(self, state: str, fragments: Sequence[Fragment], start: int, stop: int) -> Tensor:
        """Of fragments of one cut, in their own local numbering."""
        met = sorted((one for one in fragments if _meet((one.start, one.stop), (start, stop))), key=lambda one: one.start)
        return torch.cat([self._part(state, one, max(one.start, start), min(one.stop, stop)) for one in met])

    def _part(self, state: str, fragment: Fragment, start: int, stop: int) -> Tensor:
        lazy = self._open(fragment.file).get_slice(key(state, fragment.name))
        if lazy.get_shape() != [fragment.numel]:
            raise SafetensorError(f"{fragment.name} has shape {lazy.get_shape()} instead of [{fragment.numel}]")
        return lazy[start - fragment.start : stop - fragment.start]


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
