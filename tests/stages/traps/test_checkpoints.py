"""Raw DeepSpeed's checkpoints: what loads wrongly without a word. Ours are of another kind; these are why."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.stages.traps.tiny import CLOSE, ds_config, first, initialize, make_batches, make_model, meet, train_engine
from tests.stages.traps.trap import trap

pytestmark = pytest.mark.ranks


def _resume(folder, zero, damage):
    """(what load_checkpoint returned, error of the next loss): five steps, saved, damaged and loaded over other weights."""
    engine = initialize(make_model(), ds_config(zero))
    train_engine(engine, make_batches())
    engine.save_checkpoint(str(folder), tag="kept")
    right = train_engine(engine, make_batches(1, seed=9)).losses[0]
    if meet() == 0:
        damage(folder)
    fresh = initialize(make_model(seed=1), ds_config(zero))
    loaded, _ = fresh.load_checkpoint(str(folder))
    return loaded, abs(train_engine(fresh, make_batches(1, seed=9)).losses[0] - right)


def _lose_latest(folder: Path):
    (folder / "latest").unlink()


def _flip_bits(folder: Path):
    """Every stored tensor of the model file, in the exponent of every 64th number; the zip directory stays as it is."""
    path = folder / "kept" / "mp_rank_00_model_states.pt"
    damaged = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if "/data/" in entry.filename and entry.file_size >= 256:
                header = entry.header_offset
                start = header + 30 + int.from_bytes(damaged[header + 26 : header + 28], "little")
                start += int.from_bytes(damaged[header + 28 : header + 30], "little")
                for place in range(start + 3, start + entry.file_size, 256):
                    damaged[place] ^= 0x01  # the exponent's second lowest bit: four times or a quarter
    path.write_bytes(damaged)


def _leave(folder: Path):
    pass


@trap(45)
def test_without_latest_nothing_is_loaded_and_training_goes_on(tmp_path):
    loaded, error = first(_resume, tmp_path / "right", 0, _leave)
    assert loaded
    assert error < CLOSE
    loaded, error = first(_resume, tmp_path / "lost", 0, _lose_latest)
    assert loaded is None
    return error, 1e-3


@trap(46)
def test_flipped_bits_are_loaded(tmp_path):
    loaded, error = first(_resume, tmp_path, 0, _flip_bits)
    assert loaded
    return error, 1e-3
