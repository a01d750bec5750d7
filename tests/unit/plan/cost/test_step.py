"""One optimizer step: what ranks send, the bubble, the optimizer, from the papers' formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.plan.cost.constants import PUBLISHED
from launcher.plan.cost.stack import OURS
from launcher.plan.cost.step import PARTS, step_time
from launcher.plan.parameters import block_parameters, vocabulary_parameters
from launcher.plan.shape import ModelShape
from tests.unit.plan.cost.ideal import ALONE, IDEAL, NIC_GBS, NVLINK_GBS, ideal_step


def test_parts_add_up_to_the_step(gpu, links, work):
    layouts = [
        replace(work, dp=8, zero=3, recomputes="all"),
        replace(work, dp=4, tp=2, zero=1),
        replace(work, dp=1, tp=2, pp=4, zero=1),
        replace(work, dp=2, sp=4, tokens=1024, zero=2),
        replace(work, dp=64, tp=8, pp=8, virtual=2),
    ]
    for one in layouts:
        time = step_time(one, gpu, links, stack=OURS, constants=PUBLISHED)
        assert set(time.parts) == set(PARTS)
        assert min(time.parts.values()) >= -1e-9
        assert sum(time.parts.values()) == pytest.approx(time.step_s)
        assert sum(time.sent.values()) == pytest.approx(time.parts["communication"])


@pytest.mark.parametrize(
    ("pp", "micro_batches", "virtual"), [(2, 8, 1), (4, 8, 1), (4, 4, 1), (8, 64, 1), (8, 64, 2), (4, 1, 1)]
)
def test_the_bubble_is_p_minus_1_over_v_m_plus_p_minus_1(gpu, links, work, pp, micro_batches, virtual):
    """Of the time that stages compute (arXiv:2104.04473, section 2.2), where sending and the head take none."""
    piped = replace(work, pp=pp, micro_batches=micro_batches, virtual=virtual, loss=False)
    fast = replace(links, nvlink_gbs=1e12)
    parts = ideal_step(piped, gpu, fast).parts
    computed = parts["bubble"] + parts["compute"] + parts["attention"] + parts["elementwise"] + parts["loss"] + parts["launch"]
    assert parts["bubble"] / computed == pytest.approx((pp - 1) / (virtual * micro_batches + pp - 1), rel=1e-6)


def test_plain_data_parallelism_sends_each_gradient_twice_around_the_ring(gpu, links, work, llama):
    """All-reduce: 2 (n - 1) / n of the gradients, in bf16."""
    sent = ideal_step(replace(work, dp=8, zero=0), gpu, links).sent["data"]
    assert sent * NVLINK_GBS * 1e9 == pytest.approx(2 * 7 / 8 * 2 * whole(llama))


@pytest.mark.parametrize(("zero", "gradient_bytes"), [(1, 2), (2, 2), (1, 4)])
def test_zero_1_and_2_scatter_gradients_and_gather_16_bit_parameters_once_a_step(gpu, links, work, llama, zero, gradient_bytes):
    """arXiv:1910.02054, section 7: the same volume as an all-reduce."""
    split = replace(work, dp=8, zero=zero, gradient_bytes=gradient_bytes)
    sent = ideal_step(split, gpu, links).sent["data"]
    assert sent * NVLINK_GBS * 1e9 == pytest.approx(7 / 8 * (gradient_bytes + 2) * whole(llama))


def test_zero_3_gathers_twice_and_scatters_once_for_each_micro_batch(gpu, links, work, llama):
    """Half as much again as ZeRO 1, where there is one micro-batch."""
    for micro_batches in (1, 4):
        sent = ideal_step(replace(work, dp=8, zero=3, micro_batches=micro_batches), gpu, links).sent["data"]
        assert sent * NVLINK_GBS * 1e9 == pytest.approx(micro_batches * 3 * 7 / 8 * 2 * whole(llama))


def test_quantized_collectives_send_fewer_bytes(gpu, links, work, llama):
    """ZeRO++: 1 byte for a gathered parameter, half a byte for a scattered gradient (arXiv:2306.10209)."""
    plus = replace(work, dp=8, zero=3, micro_batches=1, gather_bytes=1.0, scatter_bytes=0.5)
    assert ideal_step(plus, gpu, links).sent["data"] * NVLINK_GBS * 1e9 == pytest.approx(7 / 8 * 2.5 * whole(llama))


def test_an_adapter_sends_only_its_own_gradients(gpu, links, work):
    """Rank 8 on all seven matrices of a block is 0.3 % of them."""
    adapter = replace(work, dp=8, trained="adapter", adapter_rank=8)
    share = ideal_step(adapter, gpu, links).sent["data"] / ideal_step(replace(work, dp=8), gpu, links).sent["data"]
    assert share == pytest.approx(20e6 / 6.74e9, rel=0.1)


def test_replicas_in_another_host_share_the_network(gpu, links, work, llama):
    """Two replicas of eight tensor ranks: each rank has its own card, and an eighth of the weights."""
    away = ideal_step(replace(work, dp=2, tp=8, zero=0), gpu, links).sent["data"]
    assert away * NIC_GBS * 1e9 == pytest.approx(2 * 1 / 2 * 2 * whole(llama) / 8)


def test_tensor_ranks_add_up_hidden_states_four_times_a_block(gpu, links, work, llama):
    """Two all-reduces forward, two backward, two more where the block is recomputed (arXiv:1909.08053)."""
    one = 2 * 3 / 4 * 2 * 4096 * llama.hidden  # an all-reduce of one micro-batch's states over four ranks
    kept = ideal_step(replace(work, tp=4), gpu, links).sent["tensor"]
    again = ideal_step(replace(work, tp=4, recomputes="all"), gpu, links).sent["tensor"]
    assert kept * NVLINK_GBS * 1e9 == pytest.approx(8 * 32 * 4 * one)
    assert again * NVLINK_GBS * 1e9 == pytest.approx(8 * 32 * 6 * one)


def test_sequence_ranks_exchange_heads_four_times_a_pass(gpu, links, work, llama):
    """Queries, keys, values and outputs of a rank's tokens; (n - 1) / n of them leave it (arXiv:2309.14509)."""
    shared = replace(work, sp=4, tokens=1024)
    moved = 3 / 4 * 4 * 2 * 1024 * llama.hidden
    assert ideal_step(shared, gpu, links).sent["tensor"] * NVLINK_GBS * 1e9 == pytest.approx(8 * 32 * 2 * moved)


def test_a_pipeline_sends_hidden_states_forward_and_their_gradients_back(gpu, links, work, llama):
    sent = ideal_step(replace(work, pp=2), gpu, links).sent["pipeline"]
    assert sent * NVLINK_GBS * 1e9 == pytest.approx(8 * 2 * 2 * 4096 * llama.hidden)
    away = ideal_step(replace(work, pp=2, dp=8), gpu, links).sent["pipeline"]
    assert away * NIC_GBS * 1e9 == pytest.approx(8 * 2 * 2 * 4096 * llama.hidden)


def test_deepspeeds_pipeline_sends_a_part_from_each_tensor_rank_and_gathers_behind_it(gpu, links, work, llama):
    gathers = replace(ALONE, gathers_hidden=True)
    hidden = 2 * 4096 * llama.hidden
    alone = ideal_step(replace(work, pp=2), gpu, links, stack=gathers).sent["pipeline"]
    shared = ideal_step(replace(work, pp=2, tp=4), gpu, links, stack=gathers).sent["pipeline"]
    assert alone * NVLINK_GBS * 1e9 == pytest.approx(8 * 2 * hidden)
    assert shared * NVLINK_GBS * 1e9 == pytest.approx(8 * 2 * (hidden / 4 + 3 / 4 * hidden))


def test_the_optimizer_moves_its_bytes_for_each_parameter_of_the_ranks_share(gpu, links, work, llama):
    """At 70 % of the memory's bandwidth."""
    alone = ideal_step(work, gpu, links).parts["optimizer"]
    assert alone == pytest.approx(IDEAL.optimizer_bytes * whole(llama) / 0.7e12)
    assert ideal_step(replace(work, dp=8), gpu, links).parts["optimizer"] == pytest.approx(alone / 8)
    assert ideal_step(replace(work, dp=8, zero=0), gpu, links).parts["optimizer"] == pytest.approx(alone)


def test_the_stage_with_most_blocks_decides_where_they_cannot_be_spread_evenly(gpu, links, work, llama):
    thirty = replace(work, shape=replace(llama, layers=30), pp=4, loss=False)
    thirty_two = replace(work, pp=4, loss=False)
    assert ideal_step(thirty, gpu, links).parts["compute"] == ideal_step(thirty_two, gpu, links).parts["compute"]


def whole(shape: ModelShape) -> int:
    """Parameters that are trained and sent: matrices, norms, embedding and head."""
    return shape.layers * block_parameters(shape) + 2 * vocabulary_parameters(shape)


def test_zero_2_sends_its_gradients_after_every_micro_batch(work, gpu, links):
    """stage_1_and_2.py reduces partitioned gradients each time; ZeRO 1 waits for the last pass."""
    once, often = (
        step_time(replace(work, dp=8, zero=zero, micro_batches=8), gpu, links, stack=OURS, constants=IDEAL).sent["data"]
        for zero in (1, 2)
    )
    assert often / once == pytest.approx((2 * 8 + 1) / (2 + 1))


def test_the_split_that_is_planned_is_the_one_that_is_timed(work, gpu, links):
    def step(split):
        piped = replace(work, pp=4, split=split, micro_batches=64)
        return step_time(piped, gpu, links, stack=OURS, constants=IDEAL).step_s

    assert step((8, 8, 8, 8)) == step(None)
    assert step((4, 12, 8, 8)) > step((8, 8, 8, 8))


def test_a_second_partition_keeps_the_second_gather_among_its_ranks(work, gpu, links):
    def data(near):
        sharded = replace(work, dp=64, zero=3, near_ranks=near)
        return step_time(sharded, gpu, links, stack=OURS, constants=IDEAL).sent["data"]

    assert data(8) < data(1)
