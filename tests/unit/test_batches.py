"""Rows → micro-batches: what is padded, shifted, packed, dealt out to replicas and cut into shards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.train.batches import answered_pairs, language_batch, micro_batches, packed_batch, scored_pairs
from launcher.train.tokenise import NO_LOSS

PAD, NO = 0, NO_LOSS


def test_targets_are_the_next_tokens_and_padding_is_on_the_right():
    rows = [{"input_ids": [5, 6, 7], "labels": [NO, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    batch = language_batch(rows, pad=PAD, multiple=1)

    assert batch.ids_ST.tolist() == [[5, 6, 7], [8, 9, PAD]]
    assert batch.goal.tolist() == [[6, 7, NO], [9, NO, NO]]
    assert (batch.num_rows, batch.weight, batch.positions_ST) == (2, 3, None)


def test_lengths_are_rounded_up_to_what_the_shards_need():
    batch = language_batch([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}], pad=PAD, multiple=2)

    assert batch.ids_ST.tolist() == [[5, 6, 7, PAD]]
    assert batch.goal.tolist() == [[6, 7, NO, NO]]


def test_packs_become_one_sequence_whose_positions_restart_with_each_row():
    packs = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [NO, 6, NO, 8, 9], "seq_lengths": [2, 3]},
        {"input_ids": [4, 3], "labels": [NO, 3], "seq_lengths": [2]},
    ]
    batch = packed_batch(packs, pad=PAD, multiple=1)

    assert batch.ids_ST.tolist() == [[5, 6, 7, 8, 9, 4, 3]]
    assert batch.positions_ST.tolist() == [[0, 1, 0, 1, 2, 0, 1]]
    assert batch.goal.tolist() == [[6, NO, 8, 9, NO, 3, NO]]  # no row's last token predicts the next row's first
    assert (batch.num_rows, batch.weight) == (2, 4)


def test_pairs_are_scored_at_their_last_tokens_and_chosen_come_first():
    rows = [{"chosen_ids": [5, 6], "rejected_ids": [7]}, {"chosen_ids": [8], "rejected_ids": [9, 4, 3]}]
    batch = scored_pairs(rows, pad=PAD, multiple=1)

    assert batch.ids_ST.tolist() == [[5, 6, PAD], [8, PAD, PAD], [7, PAD, PAD], [9, 4, 3]]
    assert batch.goal.tolist() == [1, 0, 0, 2]
    assert (batch.num_rows, batch.weight) == (2, 2)


def test_answers_stand_behind_their_prompt_and_only_they_are_targets():
    rows = [
        {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9], "reference_chosen": -2.0, "reference_rejected": -3.0}
    ]
    batch = answered_pairs(rows, pad=PAD, multiple=1)

    assert batch.ids_ST.tolist() == [[5, 6, 7, 8], [5, 6, 9, PAD]]
    assert batch.goal.tolist() == [[NO, 7, 8, NO], [NO, 9, NO, NO]]
    assert batch.reference_S.tolist() == [-2.0, -3.0]
    assert batch.weight == 1


def test_a_prompt_of_one_token_still_predicts_the_answer():
    batch = answered_pairs([{"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [7]}], pad=PAD, multiple=1)

    assert batch.goal.tolist() == [[6, NO], [7, NO]]
    assert batch.reference_S is None


def shard(batch, rank: int, sp: int = 2):
    return batch.on(SimpleNamespace(sp=sp, sp_rank=rank, device=torch.device("cpu")))


def test_a_shard_keeps_its_positions_in_the_whole_and_the_targets_across_the_cut():
    batch = language_batch([{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}], pad=PAD, multiple=2)
    first, second = shard(batch, 0), shard(batch, 1)

    assert (first.ids_ST.tolist(), first.positions_ST.tolist(), first.goal.tolist()) == ([[5, 6]], [[0, 1]], [[6, 7]])
    assert (second.ids_ST.tolist(), second.positions_ST.tolist(), second.goal.tolist()) == ([[7, 8]], [[2, 3]], [[8, NO]])
    assert first.weight == second.weight == 3  # of the whole row: each shard divides by the same


def test_ends_of_pairs_stay_numbers_in_the_whole_sequence():
    batch = scored_pairs([{"chosen_ids": [5, 6, 7], "rejected_ids": [8]}], pad=PAD, multiple=2)

    assert shard(batch, 1).ids_ST.tolist() == [[7, PAD], [PAD, PAD]]
    assert shard(batch, 1).goal.tolist() == [2, 0]


def test_a_batch_without_sequence_parallelism_is_whole_on_every_rank():
    batch = language_batch([{"input_ids": [5, 6], "labels": [5, 6]}], pad=PAD, multiple=1)

    assert shard(batch, 0, sp=1) == batch


def test_other_rows_and_other_targets_have_another_digest():
    row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    changed = [row | {"labels": [5, NO, 7]}, row | {"input_ids": [5, 6, 8]}]
    digests = [language_batch([one], pad=PAD, multiple=1).digest() for one in (row, dict(row), *changed)]

    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_rows_are_dealt_out_micro_batch_by_micro_batch():
    rows = list(range(8))

    assert list(micro_batches(rows, micro=2, replica=0, replicas=2)) == [[0, 1], [4, 5]]
    assert list(micro_batches(rows, micro=2, replica=1, replicas=2)) == [[2, 3], [6, 7]]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_every_row_of_a_step_comes_to_one_replica_once(micro, accum, replicas):
    rows = list(range(100, 100 + micro * accum * replicas))
    dealt = [list(micro_batches(rows, micro=micro, replica=replica, replicas=replicas)) for replica in range(replicas)]

    assert sorted(row for batches in dealt for batch in batches for row in batch) == rows
    assert {len(batches) for batches in dealt} == {accum}
    assert {len(batch) for batches in dealt for batch in batches} == {micro}


def test_packing_under_sequence_parallelism_never_gets_here():
    with pytest.raises(AssertionError):
        packed_batch([{"input_ids": [5], "labels": [5], "seq_lengths": [1]}], pad=PAD, multiple=2)
