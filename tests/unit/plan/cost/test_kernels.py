"""One matrix product, one block and the head: seconds worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.plan.cost.kernels import LAUNCH_S, Device, block_seconds, head_seconds
from launcher.plan.cost.links import links_of
from launcher.plan.parameters import block_parameters, vocabulary_parameters
from tests.unit.plan.cost.ideal import ALONE, IDEAL, ideal_step


# --- one matrix product ---
def test_a_product_takes_two_operations_for_each_of_its_three_sizes(device):
    assert device.product(12_800, 25_600, 4096) == pytest.approx(2 * 12_800 * 25_600 * 4096 / 1e14 + LAUNCH_S)


def test_one_tile_more_than_there_are_multiprocessors_takes_a_second_wave(device):
    """100 tiles of 128 x 256 fill 100 multiprocessors once."""
    full, over = device.product(1280, 2560, 4096), device.product(1408, 2560, 4096)
    assert full == pytest.approx(2 * 1280 * 2560 * 4096 / 1e14 + LAUNCH_S)
    assert over - LAUNCH_S == pytest.approx(2 * (full - LAUNCH_S))


def test_half_a_tile_takes_as_long_as_a_whole_one(device):
    assert device.product(64, 25_600, 4096) == pytest.approx(device.product(128, 25_600, 4096))


@pytest.mark.parametrize(("inner", "share"), [(4096, 1.0), (4104, 0.5), (4100, 0.25)])
def test_sizes_off_the_grid_of_the_tensor_cores_are_slower(device, inner, share):
    """Multiples of 64, of 8, of neither."""
    assert device.product(12_800, 25_600, inner) - LAUNCH_S == pytest.approx(2 * 12_800 * 25_600 * inner / 1e14 / share)


def test_a_product_with_little_to_do_for_each_byte_takes_as_long_as_its_bytes(device):
    """2 bytes of each of the three matrices; the arithmetic would take two thirds of that."""
    moved = 2 * (12_800 * 25_600 + 12_800 * 64 + 64 * 25_600)
    assert device.product(12_800, 25_600, 64) == pytest.approx(moved / 1e12 + LAUNCH_S)


def test_a_short_inner_size_reaches_half_the_speed_at_half_depth(gpu):
    """The constant is for 108 multiprocessors; fewer of them are filled sooner."""
    ideal = Device(gpu=gpu, arithmetic="bf16", constants=IDEAL)
    deep = Device(gpu=gpu, arithmetic="bf16", constants=replace(IDEAL, half_depth=512 * 108 / 100))
    rows, columns = 12_800, 25_600
    assert deep.product(rows, columns, 512) - LAUNCH_S == pytest.approx(2 * (ideal.product(rows, columns, 512) - LAUNCH_S))


@pytest.mark.parametrize(
    ("arithmetic", "fp8_ratio", "gain"),
    [("fp16", 1, 1.0), ("fp32", 1, 1 / 16), ("tf32", 1, 1 / 2), ("fp8", 2, 1.76), ("fp8", 1, 1.0)],
)
def test_other_arithmetic_is_faster_or_slower_by_its_gain(gpu, arithmetic, fp8_ratio, gain):
    kind = Device(gpu=replace(gpu, fp8_ratio=fp8_ratio), arithmetic=arithmetic, constants=IDEAL)
    assert kind.product(12_800, 25_600, 4096) - LAUNCH_S == pytest.approx(2 * 12_800 * 25_600 * 4096 / 1e14 / gain)


# --- one block and the head ---
def test_a_block_multiplies_each_token_with_each_weight_forward_and_twice_backward(device, work, llama):
    """2 operations forward, 4 backward; Llama-2-7B's sizes leave a last wave that is not full, so at most a fifth more."""
    block = block_seconds(work, device, ALONE)
    weights = block_parameters(llama) - 2 * llama.hidden
    least = 2 * 4096 * weights / 1e14
    assert least <= block.forward.matrix_s <= 1.2 * least
    assert 2 * least <= block.backward.matrix_s <= 1.2 * 2 * least


def test_an_adapter_saves_the_gradients_of_the_weights(device, work):
    whole, adapter = (block_seconds(replace(work, trained=kind), device, ALONE) for kind in ("all", "adapter"))
    assert adapter.forward.matrix_s == whole.forward.matrix_s
    assert adapter.backward.matrix_s == pytest.approx(whole.forward.matrix_s, rel=0.1)


def test_causal_attention_computes_half_of_the_scores_and_eager_attention_all_of_them(device, work, llama):
    """Two products of s x s x width each: 4 s^2 h operations, 2 s^2 h where the future half is skipped."""
    width, scores = 32 * 128, 4096**2
    flash = block_seconds(work, device, ALONE)
    eager = block_seconds(replace(work, attention="eager"), device, ALONE)
    assert flash.forward.attention_s == pytest.approx(2 * scores * width / 1e14)
    assert flash.backward.attention_s == pytest.approx(5 * scores * width / 1e14)  # one product more: scores again
    assert eager.forward.attention_s == pytest.approx(4 * scores * width / 1e14)
    assert eager.backward.attention_s == pytest.approx(8 * scores * width / 1e14)


def test_eager_attention_passes_its_scores_through_memory(gpu, work):
    """Each pass reads or writes 2 bytes for each of 32 heads x 4096^2 scores."""
    passes = Device(gpu=gpu, arithmetic="bf16", constants=replace(IDEAL, softmax_passes=6.0))
    none = Device(gpu=gpu, arithmetic="bf16", constants=IDEAL)
    eager = replace(work, attention="eager")
    more = block_seconds(eager, passes, ALONE).forward.attention_s - block_seconds(eager, none, ALONE).forward.attention_s
    assert more == pytest.approx(6 * 2 * 32 * 4096**2 / 1e12)


def test_attention_grows_with_the_length_of_a_row_and_not_with_the_rows_at_the_same_tokens(device, work):
    long = block_seconds(work, device, ALONE).forward
    short = block_seconds(replace(work, row_tokens=1024), device, ALONE).forward
    assert long.attention_s == pytest.approx(4 * short.attention_s)
    assert long.matrix_s == short.matrix_s


@pytest.mark.parametrize("degree", ["tp", "sp"])
def test_tensor_and_sequence_ranks_share_attention(device, work, degree):
    """A sequence rank has a part of the tokens of the row, a tensor rank all of them for some heads."""
    tokens = work.tokens / 4 if degree == "sp" else work.tokens
    shared = block_seconds(replace(work, tokens=tokens, **{degree: 4}), device, ALONE)
    assert 4 * shared.forward.attention_s == pytest.approx(block_seconds(work, device, ALONE).forward.attention_s)


def test_recomputing_a_block_repeats_its_forward_pass_and_recomputing_attention_only_that(device, work):
    whole = block_seconds(replace(work, recomputes="all"), device, ALONE)
    part = block_seconds(replace(work, recomputes="attention"), device, ALONE)
    assert whole.recompute == whole.forward
    assert (part.recompute.matrix_s, part.recompute.attention_s) == (0.0, part.forward.attention_s)
    assert block_seconds(work, device, ALONE).recompute.total_s == 0.0


def test_the_device_waits_for_a_host_that_launches_more_slowly(gpu, work):
    short = replace(work, tokens=128, row_tokens=128)
    slow = Device(gpu=gpu, arithmetic="bf16", constants=replace(IDEAL, launch_eager=1e-2))
    assert block_seconds(short, slow, ALONE).forward.total_s == 1e-2
    assert block_seconds(short, slow, ALONE).backward.total_s == 2e-2
    assert ideal_step(short, gpu, links_of(gpu, host_gpus=8), launch_eager=1e-2).parts["launch"] > 0


def test_the_head_multiplies_each_token_with_the_vocabulary_three_times(device, work, llama):
    least = 3 * 2 * 4096 * vocabulary_parameters(llama) / 1e14
    assert least <= head_seconds(work, device) <= 1.2 * least
    assert head_seconds(replace(work, loss=False), device) == 0.0


def test_a_4_bit_base_is_unpacked_before_each_pass(device, work):
    packed = replace(work, packed="nf4", trained="adapter", adapter_rank=8)
    plain = replace(packed, packed=None)
    more = [block_seconds(packed, device, ALONE).forward.matrix_s - block_seconds(plain, device, ALONE).forward.matrix_s]
    more.append(block_seconds(packed, device, ALONE).backward.matrix_s - block_seconds(plain, device, ALONE).backward.matrix_s)
    assert more[0] == pytest.approx(more[1])
    assert more[0] > 0
