"""The memory model, against numbers worked out by hand and published estimates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.plan.activations import EAGER, kept_by_block, loss_parts
from launcher.plan.layout import Layout
from launcher.plan.load import Load
from launcher.plan.memory import CPU_FIXED_BYTES, artifact_bytes, checkpoint_bytes, memory_of, p_fit
from launcher.plan.parameters import block_parameters, causal_parameters, lora_parameters, quantized_weights, reward_parameters
from launcher.plan.share import shares_of
from launcher.plan.states import NVME_PARAMETER_BUFFERS, reduce_bucket_elements, state_parts
from launcher.spec.model import Lora
from launcher.units import GIB


@pytest.fixture
def load(llama):
    return Load(shape=llama, kind="sft", adapter=None, quantized=False, eager=False, row_tokens=512, answer_tokens=0)


@pytest.fixture
def layout():
    return Layout(
        dp=8,
        zero=1,
        precision="bf16",
        checkpointing="none",
        offload_optimizer="none",
        offload_parameters="none",
        micro_batch=1,
        grad_accum=1,
        cuda=True,
    )


def parts(load, layout):
    return memory_of(load, layout, limit_bytes=79 * GIB).parts


def states(load, layout):
    """What a rank holds when the backward pass has ended, whatever the peak is."""
    return state_parts(load, layout, shares_of(load.shape, load.kind, load.adapter, tp=1, pp=1)[0])


def test_zero_splits_what_its_stage_says(load, layout):
    params = load.num_params
    zero1, zero2, zero3 = (states(load, replace(layout, zero=zero)) for zero in (1, 2, 3))
    assert (zero1["parameters"], zero1["gradients"]) == (2 * params, 2 * params)
    assert (zero2["parameters"], zero2["gradients"]) == (2 * params, 2 * params / 8)
    assert (zero3["parameters"], zero3["gradients"]) == (2 * params / 8, 2 * params / 8)
    assert zero1["optimizer"] == zero2["optimizer"] == zero3["optimizer"] == 12 * params / 8


def test_zero_2_keeps_the_gradients_of_matrices_on_a_border_whole(load, layout):
    """The rank with the first eighth steps a part of the embedding's neighbours; the matrix it ends in is another's too."""
    found = states(load, replace(layout, zero=2))
    assert 0 < found["gradient_edges"] <= 2 * 2 * load.shape.hidden * load.shape.ffn
    assert states(load, replace(layout, zero=2, grad_accum=2))["gradient_edges"] == 0  # fp32 sums lie in one buffer


def test_of_one_micro_batch_no_gradient_is_there_at_the_loss(load, layout):
    once, twice = (parts(load, replace(layout, precision="fp32", micro_batch=16, grad_accum=accum)) for accum in (1, 2))
    assert "gradients" not in once
    assert twice["gradients"] == 4 * load.num_params
    assert once["logits"] == twice["logits"] > 0


def test_fp32_at_zero_0_keeps_two_moments_and_no_master_copy(load, layout):
    found = parts(load, replace(layout, zero=0, precision="fp32", dp=1))
    assert found["optimizer"] == 8 * load.num_params
    assert found["parameters"] == found["gradients"] == 4 * load.num_params
    assert "buckets" not in found


def test_the_states_of_a_7b_model_on_one_rank_are_the_textbook_16_bytes_and_two_copies_of_the_gradients(load, layout):
    found = parts(load, replace(layout, dp=1, checkpointing="full"))
    states = sum(found[name] for name in ("parameters", "gradients", "optimizer"))
    assert states == 16 * load.num_params
    assert found["gradient_copy"] == 6 * load.num_params  # joined, then in fp32: the optimizer step is the peak, not the loss


def test_the_larger_of_the_two_peaks_is_reported(load, layout):
    step_bound = parts(load, replace(layout, dp=1, checkpointing="full"))
    loss_bound = parts(load, replace(layout, micro_batch=16))
    assert "gradient_copy" in step_bound
    assert "activations" not in step_bound
    assert "activations" in loss_bound
    assert "gradient_copy" not in loss_bound


def test_a_llama_2_7b_block_saves_what_was_measured(llama):
    """Galvatron's profile: 514.6 MiB for 2048 tokens, 64.3 bytes per token and hidden unit."""
    per_token = kept_by_block(llama, EAGER, "bf16", row_tokens=2048, eager=False)
    assert per_token / llama.hidden == pytest.approx(64.3, rel=0.05)


def test_eager_attention_adds_the_score_matrices(llama):
    flash = kept_by_block(llama, EAGER, "bf16", row_tokens=2048, eager=False)
    assert kept_by_block(llama, EAGER, "bf16", row_tokens=2048, eager=True) - flash == 8 * 32 * 2048


def test_full_checkpointing_keeps_one_input_a_block(load, layout):
    full = parts(load, replace(layout, checkpointing="full", zero=3, micro_batch=64))["activations"]
    none = parts(load, replace(layout, checkpointing="none", zero=3, micro_batch=64))["activations"]
    assert full < none / 5
    assert full > 32 * 2 * 4096 * 512 * 64


def test_preference_pairs_are_two_sequences(load, layout):
    pairs = parts(replace(load, kind="reward"), replace(layout, micro_batch=16))
    rows = parts(load, replace(layout, micro_batch=16))
    assert pairs["activations"] == pytest.approx(2 * rows["activations"], rel=0.01)
    assert "logits" not in pairs


def test_dpo_holds_no_second_model_because_the_reference_is_worked_out_before(load, layout):
    assert "frozen_models" not in parts(replace(load, kind="dpo"), layout)


def test_ppo_holds_four_models_two_of_them_trained(load, layout, llama):
    ppo = replace(load, kind="ppo", row_tokens=640, answer_tokens=128)
    found = parts(ppo, layout)
    actor, critic = causal_parameters(llama), reward_parameters(llama)
    assert found["parameters"] == 2 * (actor + critic)
    assert found["frozen_models"] == 2 * (actor + critic)
    assert found["optimizer"] == round(12 * (actor + critic) / 8)


def test_ppo_with_an_adapter_trains_two_adapters_and_the_critics_head(load, layout, llama):
    ppo = replace(load, kind="ppo", adapter=Lora(rank=8), row_tokens=640, answer_tokens=128)
    trained = 2 * lora_parameters(llama, Lora(rank=8)) + llama.hidden
    assert parts(ppo, layout)["optimizer"] == round(12 * trained / 8)
    assert parts(ppo, layout)["frozen_models"] == 2 * reward_parameters(llama)


def test_under_zero_3_the_rollout_gathers_the_actor(load, layout):
    ppo = replace(load, kind="ppo", row_tokens=640, answer_tokens=128)
    found = parts(ppo, replace(layout, zero=3, checkpointing="full", micro_batch=4))
    assert found["gathered_actor"] == 2 * load.num_params


def test_nf4_holds_the_blocks_in_half_a_byte_and_the_scales(load, layout, llama):
    quantized = replace(load, adapter=Lora(rank=8), quantized=True)
    packed, lora = quantized_weights(llama), lora_parameters(llama, Lora(rank=8))
    expected = (0.5 + 1 / 64 + 4 / 64 / 256) * packed + 2 * (load.num_params - packed + lora)
    assert parts(quantized, layout)["parameters"] == round(expected)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_4_bit_stage_needs_room_for_the_whole_model_that_it_scores_at_its_end(load, layout, kind):
    quantized = replace(load, kind=kind, adapter=Lora(rank=8), quantized=True, row_tokens=64)
    memory = memory_of(quantized, layout, limit_bytes=79 * GIB)
    assert memory.parts["shipped_models"] == 2 * load.num_params
    assert memory.host_peak_bytes > 2 * load.num_params


def test_offload_moves_states_to_the_host(load, layout):
    away = memory_of(load, replace(layout, zero=3, offload_optimizer="cpu"), limit_bytes=79 * GIB)
    assert "optimizer" not in away.parts
    assert away.host_peak_bytes == CPU_FIXED_BYTES + (16 + 2) * load.num_params // 8


def test_fp32_sums_stay_on_the_device_when_the_optimizer_is_on_the_host(load, layout):
    """DeepSpeed 0.19.8: `param.grad_accum` at ZeRO 1, one partition at ZeRO 2; tests/stages/test_held_bytes.py counts them."""
    cpu = replace(layout, offload_optimizer="cpu", grad_accum=2, checkpointing="full")
    assert states(load, replace(cpu, zero=1))["gradients"] == 4 * load.num_params
    assert states(load, replace(cpu, zero=1))["buckets"] == 4 * 4096**2
    assert states(load, replace(cpu, zero=2))["gradients"] == 4 * load.num_params / 8
    assert states(load, replace(cpu, zero=3))["gradients"] == 0
    assert states(load, replace(cpu, zero=1, grad_accum=1))["gradients"] == 2 * load.num_params
    assert states(load, replace(cpu, zero=2, grad_accum=1))["gradients"] == 0


def test_a_cpu_rank_has_no_cuda_context(load, layout):
    cpu = parts(load, replace(layout, cuda=False, precision="fp32"))
    assert cpu["fixed"] < GIB
    assert "fragmentation" not in cpu


def test_the_parts_add_up_to_the_peak(load, layout):
    memory = memory_of(load, layout, limit_bytes=79 * GIB)
    assert sum(memory.parts.values()) == memory.peak_bytes


@pytest.mark.parametrize(("peak", "expected"), [(100, 0.5), (90, 0.81), (111, 0.192), (82, 0.951)])
def test_the_probability_of_a_fit_falls_with_the_peak(peak, expected):
    assert p_fit(peak, 100) == pytest.approx(expected, abs=0.001)


def test_the_bucket_is_never_larger_than_what_is_trained():
    assert reduce_bucket_elements(64, num_trainable=1000) == 1000
    assert reduce_bucket_elements(64, num_trainable=10**9) == 2**24
    assert reduce_bucket_elements(8192, num_trainable=10**9) == 8192**2


def test_checkpoints_of_an_adapter_hold_no_base(load):
    adapter = replace(load, adapter=Lora(rank=8))
    full = checkpoint_bytes(load)
    assert full == 12 * load.num_params
    assert checkpoint_bytes(adapter) == 12 * adapter.num_adapter
    assert artifact_bytes(adapter, precision="bf16") == 2 * (load.num_params + adapter.num_adapter)


def test_tensor_ranks_share_matrices_logits_and_what_lies_inside_a_block(load, layout, llama):
    one, two = (memory_of(load, replace(layout, tp=tp, dp=4, micro_batch=16), limit_bytes=79 * GIB).parts for tp in (1, 2))
    assert one["parameters"] / 2 < two["parameters"] < one["parameters"] * 0.52  # the embedding is whole on both
    assert one["activations"] / 2 < two["activations"] < one["activations"] * 0.8
    tile, head = 4096 * 32_000 * 12, 2 * 4096 * 32_000  # at the second of two tiles the head has the gradient of the first
    assert one["logits"] - two["logits"] == (tile + head) // 2
    assert two["optimizer"] == 6 * two["parameters"] // 4


def logits(load, layout):
    return loss_parts(load, layout, shares_of(load.shape, load.kind, load.adapter, tp=1, pp=1)[0], block=0.0)["logits"]


def test_logits_exist_for_one_tile_of_tokens_at_a_time(load, layout):
    short, one, many = (logits(load, replace(layout, micro_batch=micro)) for micro in (4, 8, 64))
    head, states = 2 * 4096 * 32_000, 2 * 4096  # gradients of the tiles before
    assert short == 2048 * 32_000 * 12
    assert one == 4096 * 32_000 * 12
    assert many == one + 32_768 * states + head
    assert logits(replace(load, adapter=Lora()), replace(layout, micro_batch=64)) == many - head


@pytest.mark.parametrize(("zero", "kept"), [(1, 4), (2, 4 / 8), (3, 4 / 8)])
def test_gradients_of_several_micro_batches_in_bf16_are_kept_in_fp32(load, layout, zero, kept):
    """Measured as tensor storage: ZeRO 1 never splits them."""
    found = states(load, replace(layout, zero=zero, grad_accum=2))
    assert found["gradients"] == kept * load.num_params


def test_zero_1_that_adds_up_in_fp32_ends_its_backward_pass_with_both_kinds_of_gradients(load, layout):
    found = parts(load, replace(layout, grad_accum=2, checkpointing="full"))
    assert (found["gradients"], found["gradient_copy"]) == (4 * load.num_params, 2 * load.num_params)


@pytest.mark.parametrize("change", [{"precision": "fp32"}, {"precision": "fp16"}, {"sp": 2}])
def test_elsewhere_gradients_keep_the_precision_of_the_weights(load, layout, change):
    found = parts(load, replace(layout, grad_accum=2, **change))
    assert found["gradients"] == found["parameters"]


def test_checkpoints_that_are_offloaded_move_to_the_host(load, layout):
    kept, moved = (
        memory_of(load, replace(layout, zero=3, micro_batch=64, checkpointing=how), limit_bytes=79 * GIB)
        for how in ("full", "offload")
    )
    inputs = 32 * 4096 * 2 * 64 * 512
    assert kept.parts["activations"] - moved.parts["activations"] == inputs
    long = memory_of(load, replace(layout, zero=3, micro_batch=64, checkpointing="offload"), limit_bytes=79 * GIB)
    assert long.host_peak_bytes == CPU_FIXED_BYTES + inputs


def test_sequence_ranks_share_the_tokens(load, layout):
    one, two = (parts(load, replace(layout, dp=8 // sp, sp=sp, micro_batch=8)) for sp in (1, 2))
    assert two["activations"] == one["activations"] / 2
    assert two["optimizer"] == one["optimizer"]


def test_the_first_stage_of_a_pipeline_holds_an_activation_for_each_stage(load, layout):
    """1F1B: with four stages the first one has four micro-batches in flight, the last one."""
    whole = parts(load, replace(layout, dp=1, micro_batch=16))
    piped = parts(load, replace(layout, dp=1, pp=4, micro_batch=16, grad_accum=8))
    assert piped["activations"] == pytest.approx(whole["activations"], rel=0.01)  # a quarter of the blocks, four times
    assert piped["parameters"] < whole["parameters"] / 3
    assert "logits" not in piped
    short = parts(load, replace(layout, dp=1, pp=4, micro_batch=16, grad_accum=2))
    assert short["activations"] == pytest.approx(whole["activations"] / 2, rel=0.02)


def test_where_the_head_is_large_the_last_stage_is_the_fullest(load, layout, llama):
    wide = replace(load, shape=replace(llama, vocab=256_000, layers=4, tied=True), row_tokens=64)
    piped = parts(wide, replace(layout, dp=1, pp=2, grad_accum=1, checkpointing="full", micro_batch=64))
    assert "logits" in piped


def test_a_secondary_partition_is_held_beside_the_first(load, layout):
    found = parts(load, replace(layout, zero=3, hpz=4, micro_batch=8))
    assert found["secondary_parameters"] == 2 * load.num_params // 4
    assert found["parameters"] == 2 * load.num_params // 8


def test_a_ratio_leaves_the_rest_of_the_optimizer_on_the_device(load, layout):
    half = memory_of(load, replace(layout, zero=3, offload_optimizer="cpu", ratio=0.5), limit_bytes=79 * GIB)
    assert half.parts["optimizer"] == 6 * load.num_params // 8
    assert half.parts["gradients"] == 2 * load.num_params // 8
    assert half.host_peak_bytes == CPU_FIXED_BYTES + (8 + 2) * load.num_params // 8


def test_an_optimizer_on_nvme_passes_through_buffers_of_one_sub_group(load, layout):
    gpu = memory_of(load, replace(layout, zero=3, dp=1, offload_optimizer="nvme"), limit_bytes=79 * GIB)
    assert "optimizer" not in gpu.parts
    assert "gradient_copy" not in gpu.parts
    cpu = parts(load, replace(layout, zero=3, dp=1, offload_optimizer="nvme", cuda=False, precision="fp32"))
    assert cpu["swap_buffers"] == 4 * 4 * 10**9
    assert "optimizer" not in cpu


ON_NVME = {"zero": 3, "offload_parameters": "nvme", "precision": "bf16"}


def test_parameters_on_nvme_leave_small_parts_and_buffers_in_memory(load, layout, llama):
    """The largest tensors are the embedding and the head; norms alone have parts of less than 1 MiB on each of 8 ranks."""
    part, norms = llama.vocab * llama.hidden // 8, (2 * llama.layers + 1) * llama.hidden
    on_disk = memory_of(load, replace(layout, **ON_NVME), limit_bytes=79 * GIB)
    assert "parameters" not in on_disk.parts
    assert on_disk.nvme_bytes == 2 * (load.num_params - norms) // 8
    buffers = 2 * (NVME_PARAMETER_BUFFERS * part + load.num_params // 8)  # and what a step writes
    module = 2 * max(block_parameters(llama), llama.vocab * llama.hidden)  # whole, as it is read before training
    assert on_disk.host_peak_bytes == pytest.approx(CPU_FIXED_BYTES + buffers + 2 * norms // 8 + module, rel=1e-6)
    cpu = memory_of(load, replace(layout, **ON_NVME, cuda=False), limit_bytes=79 * GIB)
    assert (cpu.parts["swap_buffers"], cpu.parts["parameters"]) == (buffers, 2 * norms // 8)
    assert cpu.nvme_bytes == on_disk.nvme_bytes


def test_swap_files_hold_16_bytes_a_trained_parameter_and_2_of_each(load, layout):
    """A run of 14.7 M parameters on two ranks left 29.4 MB of parameters and 235.7 MB of the optimizer."""
    both = memory_of(load, replace(layout, **ON_NVME, offload_optimizer="nvme"), limit_bytes=79 * GIB)
    assert both.nvme_bytes == pytest.approx(18 * load.num_params / 8, rel=1e-3)
    adapted = replace(load, adapter=Lora(rank=8))
    assert memory_of(adapted, replace(layout, **ON_NVME), limit_bytes=79 * GIB).nvme_bytes == pytest.approx(
        2 * load.num_params / 8, rel=1e-3
    )
    assert memory_of(load, replace(layout, zero=3), limit_bytes=79 * GIB).nvme_bytes == 0


def host(load, layout):
    return memory_of(load, layout, limit_bytes=79 * GIB).host_peak_bytes - CPU_FIXED_BYTES


def test_a_model_passes_whole_through_the_host_only_where_ranks_keep_it_whole(load, layout, llama):
    block = max(block_parameters(llama), llama.vocab * llama.hidden)
    assert host(load, layout) == 2 * load.num_params
    assert host(load, replace(layout, zero=3)) == round(2 * (1.2 * load.num_params / 8 + block))
    tensor = host(load, replace(layout, tp=8, dp=1))
    pipeline = host(load, replace(layout, pp=8, dp=1))
    assert 2 * load.num_params / 8 < tensor < 2 * load.num_params / 4
    assert 2 * load.num_params / 8 < pipeline < 2 * load.num_params / 4


def test_an_adapter_is_merged_into_the_whole_base_on_the_host(load, layout, llama):
    """By rank 0, whatever the layout: on a GPU machine in host memory, on a CPU rank beside what it trains."""
    lora = replace(load, adapter=Lora(rank=1), row_tokens=8)
    sharded = replace(layout, zero=3, dp=64)
    assert memory_of(lora, sharded, limit_bytes=79 * GIB).host_peak_bytes >= 2 * load.num_params
    found = parts(lora, replace(sharded, cuda=False, precision="fp32", checkpointing="full"))
    assert found["merged_model"] == 4 * load.num_params
