"""What a rank holds under tensor and pipeline parallelism, against counts worked out another way."""

from __future__ import annotations

import pytest

from launcher.plan.parameters import (
    block_parameters,
    causal_parameters,
    lora_parameters,
    reward_parameters,
    vocabulary_parameters,
)
from launcher.plan.shape import FAMILIES, block_linears, shape_of_new
from launcher.plan.share import pipeline_split, shares_of
from launcher.spec.model import Lora, NewModel


def shape_of(family="llama", *, tied=False, layers=4):
    return shape_of_new(NewModel(family=family, layers=layers, hidden=64, heads=4, ffn=192, positions=64, tied=tied), 1000)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_rank_holds_the_whole_model(family, tied):
    shape = shape_of(family, tied=tied)
    (causal,) = shares_of(shape, "sft", None, tp=1, pp=1)
    (reward,) = shares_of(shape, "reward", None, tp=1, pp=1)
    assert (causal.num_params, causal.layers, causal.head) == (causal_parameters(shape), 4, True)
    assert reward.num_params == reward_parameters(shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_stages_hold_the_model_once_and_a_tied_matrix_twice(family):
    for tied in (True, False):
        shape = shape_of(family, tied=tied)
        held = sum(share.num_params for share in shares_of(shape, "sft", None, tp=1, pp=3))
        assert held - causal_parameters(shape) == (vocabulary_parameters(shape) if tied else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensor_ranks_hold_each_matrix_once_and_each_norm_twice(family):
    shape = shape_of(family)
    matrices = sum(linear.num_weights for linear in block_linears(shape))
    split_biases = sum(linear.outputs for linear in block_linears(shape) if linear.bias and not linear.row)
    repeated = block_parameters(shape) - matrices - split_biases
    assert 2 * block_parameters(shape, tp=2) == block_parameters(shape) + repeated
    assert repeated > 0


def test_the_input_embedding_is_split_over_tensor_ranks_only_where_it_is_the_head():
    table, blocks = 1000 * 64, 4 * block_parameters(shape_of(), tp=2)
    (untied,) = shares_of(shape_of(), "sft", None, tp=2, pp=1)
    (tied,) = shares_of(shape_of(tied=True), "sft", None, tp=2, pp=1)
    (reward,) = shares_of(shape_of(tied=True), "reward", None, tp=2, pp=1)
    assert untied.num_params == blocks + 64 + table + table // 2
    assert tied.num_params == blocks + 64 + table // 2
    assert reward.num_params == blocks + 64 + table + 64  # its head is one row


def test_a_vocabulary_that_the_ranks_do_not_divide_is_rounded_up():
    assert vocabulary_parameters(shape_of(), tp=3) == 334 * 64


def test_every_tensor_rank_keeps_the_side_of_an_adapter_that_is_not_split():
    # rank 8, two blocks: four attention matrices of 64 x 64, gate and up of 64 x 192, down of 192 x 64
    shape = shape_of(layers=2)
    assert lora_parameters(shape, Lora(rank=8), tp=2) == 2 * 8 * (4 * (64 + 32) + 3 * (64 + 96))


def test_the_embedding_and_the_head_count_as_blocks_do():
    shape = shape_of(layers=8)
    assert vocabulary_parameters(shape) > block_parameters(shape)
    assert pipeline_split(shape, "sft", 2) == (4, 4)
    assert pipeline_split(shape, "reward", 2) == (3, 5)  # a head of one row, so the last stage takes more blocks
    assert [share.layers for share in shares_of(shape, "sft", None, tp=1, pp=4)] == list(pipeline_split(shape, "sft", 4))


def test_only_the_last_stage_has_the_head_and_a_reward_models_new_row():
    first, last = shares_of(shape_of(), "reward", Lora(rank=8), tp=1, pp=2)
    assert (first.head, last.head) == (False, True)
    assert (first.layers, last.layers) == (1, 3)
    assert last.num_adapter == 3 * first.num_adapter + 64
