"""Tensors one by one: together they are the parameters that are counted elsewhere; and how ZeRO fills them up, by hand."""

from __future__ import annotations

import itertools

import pytest

from launcher.plan import tensors as counted
from launcher.plan.shape import FAMILIES, shape_of_new
from launcher.plan.share import shares_of
from launcher.plan.tensors import split_of, tensors_of
from launcher.spec.model import Lora, NewModel


def shape(family: str = "llama", *, tied: bool = False, layers: int = 5, vocab: int = 1003):
    return shape_of_new(NewModel(family=family, layers=layers, hidden=64, heads=4, ffn=96, positions=48, tied=tied), vocab)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", [None, Lora(rank=4)], ids=["whole", "lora"])
def test_they_add_up_to_the_parameters_of_every_share(family, adapter):
    for tied, kind, tp, pp in itertools.product((True, False), ("sft", "reward"), (1, 2), (1, 2, 3)):
        of = shape(family, tied=tied)
        for share in shares_of(of, kind, adapter, tp=tp, pp=pp):
            tensors = tensors_of(of, kind, adapter, stage=share.stage, tp=tp, pp=pp)
            base = tensors.frozen if adapter else tensors.trained
            assert sum(base) == share.num_params
            assert sum(tensors.trained if adapter else ()) == share.num_adapter


def test_a_flat_buffer_is_filled_up_to_twice_the_ranks_and_a_shard_to_whole_elements():
    of = shape(layers=1, vocab=5)
    tensors = tensors_of(of, "sft", None, stage=0, tp=1, pp=1)
    block = (64 * 64,) * 4 + (64 * 96,) * 3
    assert tensors.matrices == (5 * 64, *block, 5 * 64)
    assert tensors.vectors == (64, 64, 64)
    split = split_of(of, "sft", None, stage=0, tp=1, pp=1, ranks=5)
    assert split.trained == 640 + sum(block) + 192 == 35_648
    assert split.flat == 35_460 + 200  # to multiples of ten: matrices were 35 456, vectors 192
    assert split.shards == 2 * 64 + 4 * 820 + 3 * 1229 + 3 * 13
    assert (split.largest, split.persistent) == (64 * 96, 192 + 640)  # up to ten times the width stays gathered


def test_a_rank_touches_the_tensors_that_its_stretch_lies_in():
    """One block of 64 x 64: q, k, v, o of 4096, three of 6144, between two ends of 320. Halves of 17 728 and 96."""
    split = split_of(shape(layers=1, vocab=5), "sft", None, stage=0, tp=1, pp=1, ranks=2)
    first, second = 320 + 4 * 4096 + 6144, 3 * 6144 + 320  # the border lies in the first matrix of the MLP
    assert split.touched == max(first + 128, second + 128)


@pytest.mark.parametrize("ranks", [2, 3, 7, 16, 100, 1000])
def test_of_many_ranks_those_around_the_borders_tell_the_fullest(monkeypatch, ranks):
    for tied, layers in itertools.product((True, False), (1, 5)):
        of = tensors_of(shape(tied=tied, layers=layers), "sft", None, stage=0, tp=1, pp=1)
        each = counted._touched(of, ranks)
        monkeypatch.setattr(counted, "MOST_LISTED", 1)
        assert counted._touched(of, ranks) == each
        monkeypatch.undo()
