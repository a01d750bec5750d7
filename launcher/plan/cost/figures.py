"""What the ranks measured (launcher/train/speed.py) as nouns: sizes and seconds. DERIVE, nouns and their reading only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    rows: int
    columns: int
    inner: int
    precision: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPass:
    rows: int
    tokens: int
    heads: int
    head_dim: int
    precision: str
    forward_s: float
    backward_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPass:
    """Forward and backward pass of one block of Llama; `core_s`: of its matrix products and attention alone."""

    rows: int
    tokens: int
    hidden: int
    ffn: int
    heads: int
    precision: str
    seconds: float
    core_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPass:
    tokens: int
    vocab: int
    precision: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Bytes that an addition of large vectors reads and writes."""

    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCopies:
    bytes: int
    up_s: float
    down_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    kind: str  # all_reduce | all_gather
    bytes: int  # of the whole vector
    seconds: float

    def sent(self, world: int) -> float:
        """Bytes that each rank of a ring sends."""
        return (2 if self.kind == "all_reduce" else 1) * (world - 1) / world * self.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamStep:
    parameters: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Seconds of the slowest of `world` ranks, all busy at once."""

    device: str  # as the driver names it, or "cpu"
    multiprocessors: int
    threads: int
    world: int
    had_cores: float | None  # share of its cores that the slowest rank had, the rest went to other programs; None on GPUs
    products: tuple[Product, ...]  # in 16 bit and in fp32
    attention: AttentionPass
    blocks: tuple[BlockPass, ...]  # a usual one, and one so small that only its launching counts; none on GPUs
    loss: LossPass | None  # None on GPUs
    memory: Moved
    host_copies: HostCopies | None
    collectives: tuple[Collective, ...]  # the smallest first; none with one rank
    adam: AdamStep


def figures_from(told: Mapping[str, object]) -> Figures:
    """ValueError where something is missing, unknown or of another kind."""
    values = dict(told)
    try:
        many = {"products": Product, "blocks": BlockPass, "collectives": Collective}
        one = {"attention": AttentionPass, "memory": Moved, "adam": AdamStep}
        perhaps = {"loss": LossPass, "host_copies": HostCopies}
        values |= {name: tuple(_made(kind, each) for each in _list(values[name])) for name, kind in many.items()}
        values |= {name: _made(kind, values[name]) for name, kind in one.items()}
        values |= {name: None if values[name] is None else _made(kind, values[name]) for name, kind in perhaps.items()}
        return Figures(**values)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not what the ranks write: {error}") from None


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _made(kind: type[Kind], value: object) -> Kind:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no object")
    return kind(**value)
