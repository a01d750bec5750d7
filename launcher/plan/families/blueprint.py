"""Blueprint: what a model of no known family is made of, as transformers builds it; and its file, read. DERIVE, opens no file.

The node side makes it (train/blueprint.py). All blocks of such a model have the same tensors, or there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from launcher.plan.families.linear import Linear

SCHEMA = 1
Size = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What autograd keeps of one block for its backward pass, on a CPU."""

    element_bytes: int
    attention: str
    trained: str  # all, adapter, adapter with dropout: of an adapter without its rank's products
    bytes: float  # of a token
    bytes_by_row_token: float  # of a token, for each token of its row


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Sizes of tensors in the model's order, the head apart; a tied head is the embedding and stands before the blocks."""

    transformers: str  # versions that built it
    torch: str
    before: tuple[Size, ...]
    block: tuple[Size, ...]
    behind: tuple[Size, ...]
    head: tuple[Size, ...]
    linears: tuple[Linear, ...]
    gated: bool
    layer_norm: bool
    learned_positions: int
    kept: tuple[Kept, ...]
    untrained: str | None  # why the ranks would train something else; None: they would not
    scores: bool  # there is a classifier of the family, for rewards

    def kept_when(self, element_bytes: int, attention: str, trained: str) -> Kept:
        wanted = (element_bytes, attention, trained)
        return next(one for one in self.kept if (one.element_bytes, one.attention, one.trained) == wanted)


def num_elements(sizes: Sequence[Size]) -> int:
    return sum(map(prod, sizes))


def matrices_of(sizes: Sequence[Size]) -> tuple[int, ...]:
    """Elements of each tensor that weight decay holds for (train/optimizer.py)."""
    return tuple(prod(size) for size in sizes if len(size) >= 2)


def vectors_of(sizes: Sequence[Size]) -> tuple[int, ...]:
    return tuple(prod(size) for size in sizes if len(size) < 2)


Told = Mapping[str, object]


def blueprint_from(told: Told) -> Blueprint:
    """ValueError for a file that is not what the node side writes."""
    try:
        if told["schema"] != SCHEMA:
            raise ValueError(f"schema {told['schema']!r} is not {SCHEMA}")
        head = set(_list(told, "head"))
        behind = [row for row in _rows(told, "behind") if row["name"] not in head]
        return Blueprint(
            transformers=str(told["transformers"]),
            torch=str(told["torch"]),
            before=_sizes(_rows(told, "before")),
            block=_sizes(_rows(told, "block")),
            behind=_sizes(behind),
            head=_sizes([row for row in _rows(told, "behind") if row["name"] in head]),
            linears=tuple(Linear(**row) for row in _rows(told, "linears")),  # type: ignore[arg-type]
            gated=told["gated"] is True,
            layer_norm=told["layer_norm"] is True,
            learned_positions=_count(told["learned_positions"]),
            kept=tuple(_kept(row) for row in _rows(told, "kept")),
            untrained=str(told["untrained"]) if told["untrained"] else None,
            scores=told["scores"] is True,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _kept(row: Told) -> Kept:
    return Kept(
        element_bytes={"fp32": 4, "bf16": 2}[str(row["precision"])],
        attention=str(row["attention"]),
        trained=str(row["trained"]),
        bytes=float(str(row["bytes"])),
        bytes_by_row_token=float(str(row["bytes_by_row_token"])),
    )


def _sizes(rows: Sequence[Told]) -> tuple[Size, ...]:
    return tuple(tuple(_count(number) for number in _list(row, "size")) for row in rows)


def _rows(told: Told, name: str) -> list[Told]:
    rows = _list(told, name)
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name} holds something else than objects")
    return rows  # type: ignore[return-value]


def _list(told: Told, name: str) -> list[object]:
    value = told[name]
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value
