"""What a training goes on from, in one format for all layouts: masters, moments and Adam steps of all trained weights.

    save_states(folder, engine, pieces, mesh, step=40, extra={})     # collective; each rank writes one file, rank 0 the index
    extra = load_states(folder, engine, pieces, mesh)                # collective; any other layout, one weight at a time

Frozen weights are not saved: they come from the model folder. Same layout: the same bits. Files: train/fragments.py; where an
engine keeps its masters: train/masters.py. Hashes, names and pruning of whole checkpoints: train/checkpoints.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import read_json, write_json
from launcher.train.fragments import (
    INDEX,
    SCHEMA,
    STATES,
    Fragment,
    Reader,
    flaw,
    fragments_of,
    index_of,
    key,
    write_tensors,
)
from launcher.train.masters import Master, Place, changing, held, held_for_change, masters_of, split_over_ranks
from launcher.train.mesh import Mesh
from launcher.train.pieces import Piece
from launcher.train.ranks import barrier, gather, gather_first, tends

# What a dynamic loss scale remembers between steps (deepspeed/runtime/fp16/loss_scaler.py:228).
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def rank_file(rank: int) -> str:
    return f"rank{rank}.safetensors"


def save_states(
    folder: Path, engine: deepspeed.DeepSpeedEngine, pieces: Sequence[Piece], mesh: Mesh, *, step: int, extra: Mapping[str, Any]
) -> None:
    """Fill `folder`. `extra` is JSON that load_states gives back, the same on all ranks. Collective."""
    rank = dist.get_rank()
    if tends():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    barrier()
    masters = masters_of(engine, pieces)
    told = [(master, _told(engine, master, mesh)) for master in masters]
    fragments = [_fragment(master, place, rank_file(rank)) for master, places in told for place in places]
    if fragments:
        sizes = {key(state, one.name): one.numel for one in fragments for state in STATES}
        write_tensors(folder / rank_file(rank), sizes, _tensors(engine, told))
    wanted, told_first = _wanted(pieces), gather_first(fragments)
    if rank == 0:  # of many ranks these are many fragments: nobody else needs them
        everyones = [fragment for theirs in told_first for fragment in theirs]
        wrong = _flaws(_by_name(everyones), wanted)
        assert not wrong, wrong
        index = {"schema": SCHEMA, "step": step, "scale": _scale(engine), "extra": extra, "weights": index_of(everyones)}
        write_json(folder / INDEX, index)
    barrier()


def load_states(folder: Path, engine: deepspeed.DeepSpeedEngine, pieces: Sequence[Piece], mesh: Mesh) -> dict[str, Any]:
    """Give the engine the saved masters, moments and steps, and its model their casts; the `extra` that was saved. Collective.

    LauncherError E561 where the checkpoint is of other weights, has gaps, or a file is not what the index says.
    """
    index, told = _read_index(folder)
    if wrong := _flaws(told, _wanted(pieces)):
        raise _unfit(folder, wrong)
    reader = Reader(folder, told)
    with changing(engine):
        for master in masters_of(engine, pieces):
            with held_for_change(engine, master):
                _load_master(folder, master, reader, told)
    _set_scale(engine, index["scale"])
    return index["extra"]


# --- saving --------------------------------------------------------------------------------------------------------


def _told(engine: deepspeed.DeepSpeedEngine, master: Master, mesh: Mesh) -> list[Place]:
    """What this rank writes of a master: all it owns, or at ZeRO 0 only where it is the first of equal copies."""
    first = mesh.dp_rank == 0 and mesh.sp_rank == 0
    return [place for place in master.places if place.piece.tells and (first or split_over_ranks(engine))]


def _fragment(master: Master, place: Place, file: str) -> Fragment:
    piece = place.piece
    return Fragment(
        name=piece.name,
        shape=tuple(piece.shape),
        cut=piece.cut,
        start=place.start,
        numel=place.numel,
        step=master.step(),
        file=file,
    )


def _tensors(engine: deepspeed.DeepSpeedEngine, told: Sequence[tuple[Master, Sequence[Place]]]) -> Iterator[Tensor]:
    for master, places in told:
        if places:
            with held(engine, master):
                for place in places:
                    for state in STATES:
                        yield master.read(place, state)


def _scale(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    """A dynamic loss scale (fp16); empty elsewhere."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {name: getattr(scaler, name) for name in SCALE} if getattr(scaler, "dynamic", False) else {}


# --- loading -------------------------------------------------------------------------------------------------------


def _read_index(folder: Path) -> tuple[dict[str, Any], dict[str, list[Fragment]]]:
    try:
        index = read_json(folder / INDEX)
        if index["schema"] != SCHEMA:
            raise ValueError(f"schema {index['schema']} instead of {SCHEMA}")
        return index, fragments_of(index["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unfit(folder, [f"{INDEX} cannot be read: {type(error).__name__} {error}"]) from error


def _load_master(folder: Path, master: Master, reader: Reader, told: Mapping[str, Sequence[Fragment]]) -> None:
    for place in master.places:
        piece = place.piece
        for state in STATES:
            try:
                values = reader.read(piece.name, state, cut=piece.cut, start=place.start, numel=place.numel)
            except (OSError, SafetensorError) as error:
                raise _unfit(folder, [f"{piece.name} cannot be read: {error}"]) from error
            master.write(place, state, values)
    # Weights that one flat tensor holds share its step. They differ only where some were not yet used: their moments are 0.
    master.set_step(max((one.step for place in master.places for one in told[place.piece.name]), default=0))


def _set_scale(engine: deepspeed.DeepSpeedEngine, scale: Mapping[str, float]) -> None:
    for name, value in scale.items():
        setattr(engine.optimizer.loss_scaler, name, value)


# --- both ----------------------------------------------------------------------------------------------------------


def _wanted(pieces: Sequence[Piece]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all trained weights of the model, whatever this rank holds of them. Collective."""
    mine = {piece.name: tuple(piece.shape) for piece in pieces if piece.weight.requires_grad}
    return {name: shape for theirs in gather(mine) for name, shape in theirs.items()}


def _by_name(fragments: Sequence[Fragment]) -> dict[str, list[Fragment]]:
    named: dict[str, list[Fragment]] = {}
    for fragment in fragments:
        named.setdefault(fragment.name, []).append(fragment)
    return named


def _flaws(told: Mapping[str, Sequence[Fragment]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Every trained weight must be there once and whole, and nothing else. The same on all ranks."""
    flaws = [f"{name} is missing" for name in sorted(wanted.keys() - told.keys())]
    flaws += [f"{name} is not trained here" for name in sorted(told.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & told.keys()):
        if what := flaw(told[name], wanted[name]):
            flaws.append(f"{name} {what}")
    return flaws


def _unfit(folder: Path, flaws: Sequence[str]) -> LauncherError:
    more = f" and {len(flaws) - 3} more" if len(flaws) > 3 else ""
    hint = "remove the checkpoint folder and resume: the stage goes on from the one before, or starts again"
    return LauncherError(Problem(code="E561", where=str(folder), what="; ".join(flaws[:3]) + more, hint=hint))
