"""What raw DeepSpeed and the libraries do with what the plan refuses: refuse it too, or take it and do nothing.

The legality table names each of these tests as the proof of a rule (launcher/plan/legality, `proof`). What DeepSpeed takes and
trains wrongly is in traps/. A test that fails here says that a rule can be lifted.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from deepspeed.utils import groups
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.stages.harness import run_ranks
from tests.stages.test_offload import skip_unless_built
from tests.stages.traps.tiny import (
    BF16,
    CLOSE,
    ROWS,
    TOKENS,
    WIDE,
    ds_config,
    initialize,
    loss_error,
    make_batches,
    make_model,
    meet,
    on_a_disk,
    train_alone,
    train_engine,
)

pytestmark = pytest.mark.ranks


def _said(function):
    """The error of this rank; empty where there is none. A rank that is done waits: its peers may still be starting."""
    try:
        function()
        if dist.is_initialized():
            dist.barrier()
    except Exception as error:  # whatever it is, it is what the user would see
        return f"{type(error).__name__}: {error}"
    return ""


def said(function, *args, world=2):
    """What each rank said."""
    return run_ranks(partial(_said, partial(function, *args)), world=world)


def refused(texts, reason):
    """Every rank stopped, the first one for this reason; the others may only have noticed that it was gone."""
    return all(texts) and any(reason in text for text in texts)


# --- degrees -------------------------------------------------------------------------------------------------------------


def _autotp(changes):
    """Loss error of AutoTP over two ranks."""
    meet()
    groups._init_tp_mesh_device(tensor_model_parallel_size=2)
    engine = initialize(make_model(**changes), ds_config(1, tensor_parallel={"autotp_size": 2}), mpu=groups)
    got = train_engine(engine, make_batches(), dp=1, dp_rank=0)
    return loss_error(got, train_alone(make_model(**changes), make_batches()))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48},
        {"num_key_value_heads": 1},
        {"intermediate_size": 49},
    ],
    ids=["heads", "key/value heads", "columns"],
)
def test_deepspeeds_own_tensor_parallelism_cuts_unequal_parts_and_ours_does_not(changes):
    """E217 is a limit of ours: train/sharding gives every rank as many heads and columns as every other."""
    assert run_ranks(_autotp, changes, world=2)[0] < CLOSE


def _pipeline(blocks, zero):
    meet()
    layers = [LayerSpec(nn.Linear, 4, 4) for _ in range(blocks)]
    module = PipelineModule(layers, num_stages=2, loss_fn=lambda got, wanted: (got - wanted).square().mean())
    engine = initialize(module, ds_config(zero, train_batch_size=4, gradient_accumulation_steps=2))
    engine.train_batch(iter([(torch.ones(2, 4), torch.ones(2, 4))] * 2))


def test_a_pipeline_stage_without_a_block_has_nothing_to_optimise():
    assert refused(said(_pipeline, 1, 1), "optimizer got an empty parameter list")


@pytest.mark.parametrize("zero", [2, 3])
def test_zero_2_and_3_are_refused_under_a_pipeline(zero):
    assert said(_pipeline, 4, 1) == ["", ""]
    assert refused(said(_pipeline, 4, zero), "ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism")


def _register(model, attention="sdpa"):
    meet()
    return UlyssesSPAttentionHF.register_with_transformers(
        model, core_attn_implementation=attention, sequence_parallel_size=dist.get_world_size(), micro_batch_size=ROWS
    )


def _ulysses(changes):
    _register(make_model(**changes), changes.get("attn_implementation", "sdpa"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}, "Attention head count 3 is not divisible"),
        (
            {"num_attention_heads": 12, "num_key_value_heads": 3, "hidden_size": 96},
            "KV attention head count 3 is not divisible",
        ),
    ],
    ids=["heads", "key/value heads"],
)
def test_ulysses_refuses_heads_that_it_cannot_spread(changes, reason):
    assert refused(said(_ulysses, changes), reason)


def test_ulysses_refuses_eager_attention():
    assert said(_ulysses, {}) == ["", ""]
    eager = said(_ulysses, {"attn_implementation": "eager"})
    assert refused(eager, "eager attn_implementation isn't currently supported by Ulysses")


def _ulysses_in_a_pipeline():
    layers = [LayerSpec(nn.Linear, 4, 4) for _ in range(4)]
    mpu = _register(make_model())
    initialize(PipelineModule(layers, num_stages=2, loss_fn=lambda got, _: got.mean()), ds_config(1), mpu=mpu)


def _ulysses_beside_tensor():
    """Two ranks that share a row's tokens and every matrix."""
    meet()
    groups._init_tp_mesh_device(tensor_model_parallel_size=2)
    model = make_model()
    engine = initialize(model, ds_config(1, tensor_parallel={"autotp_size": 2}), mpu=_register(model))
    positions = torch.arange(TOKENS).expand(ROWS, -1)
    mine = {"input_ids": make_batches()[0], "position_ids": positions}
    engine(**{name: tensor.chunk(2, dim=1)[dist.get_rank()].contiguous() for name, tensor in mine.items()})


def test_sequence_parallelism_is_refused_in_a_pipeline_and_beside_tensor_parallelism():
    assert refused(said(_ulysses_in_a_pipeline), "mpu must be None with pipeline parallelism")
    assert refused(said(_ulysses_beside_tensor), "Data inconsistency within the TP group")


def _four_bit(sections, sizes=MappingProxyType({"hidden_size": 64, "intermediate_size": 64}), **more):
    """A model whose blocks' matrices are packed, with an adapter; the difference of its logits to those before the engine."""
    import bitsandbytes

    meet()
    model = make_model(**sizes)
    for name, linear in [(name, one) for name, one in model.model.layers.named_modules() if isinstance(one, nn.Linear)]:
        packed = bitsandbytes.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, quant_type="nf4")
        packed.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        model.model.layers.set_submodule(name, packed.to("cpu"))
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    before = model(input_ids=make_batches()[0]).logits.detach()
    after = initialize(model, ds_config(1, **sections), **more)(input_ids=make_batches()[0]).logits
    return (after - before).abs().max().item()


def _four_bit_in_halves():
    meet()
    groups._init_tp_mesh_device(tensor_model_parallel_size=2)
    _four_bit({"tensor_parallel": {"autotp_size": 2}}, mpu=groups)


def test_packed_weights_cannot_be_cut():
    assert run_ranks(_four_bit, {}, world=2) == [0.0, 0.0]
    assert refused(said(_four_bit_in_halves), "KeyError")


# --- ZeRO and offload ------------------------------------------------------------------------------------------------------


def _trained(zero, section):
    """Class of the optimizer, and the losses."""
    engine = initialize(make_model(), ds_config(zero, zero_section=section))
    return type(engine.optimizer).__name__, train_engine(engine, make_batches()).losses


def _held_off_the_device(zero, section):
    """Whether the engine says that anything is offloaded."""
    engine = initialize(make_model(), ds_config(zero, zero_section=section))
    return bool(getattr(engine.optimizer, "cpu_offload", False) or getattr(engine.optimizer, "offload_optimizer", False))


def test_offload_of_the_optimizer_at_zero_0_is_taken_and_offloads_nothing():
    plain, offloaded = (
        run_ranks(_trained, 0, section, world=2)[0] for section in ({}, {"offload_optimizer": {"device": "cpu"}})
    )
    assert offloaded == plain
    assert run_ranks(_held_off_the_device, 0, {"offload_optimizer": {"device": "cpu"}}, world=2) == [False, False]
    assert run_ranks(_held_off_the_device, 2, {"offload_optimizer": {"device": "cpu"}}, world=2) == [True, True]


def _files_after(zero, folder):
    initialize(make_model(), ds_config(zero, zero_section={"offload_optimizer": {"device": "nvme", "nvme_path": folder}}))
    return len([path for path in Path(folder).rglob("*") if path.is_file()])


def test_nvme_below_zero_3_is_taken_and_writes_nothing_to_the_disk(tmp_path):
    """It is plain offload to the CPU."""
    section = {"offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path)}}
    assert run_ranks(_files_after, 2, str(tmp_path), world=2) == [0, 0]
    assert run_ranks(_held_off_the_device, 2, section, world=2) == [True, True]


def _nvme_without_a_path():
    initialize(make_model(), ds_config(3, zero_section={"offload_optimizer": {"device": "nvme"}}))


def test_nvme_without_a_path_ends_in_a_type_error():
    assert refused(said(_nvme_without_a_path), "TypeError: expected str, bytes or os.PathLike object")


def _files_of(engine):
    """Whether each swap file of this engine's parameters is there."""
    swapped = [weight for weight in engine.module.parameters() if weight.ds_tensor.final_location == "nvme"]
    return [Path(weight.nvme_swapper.get_path(weight)).exists() for weight in swapped]


def _two_engines(section):
    """Files of the first engine's parameters, before and after the second begins."""
    engine = initialize(make_model(**WIDE), ds_config(3, zero_section=section, **BF16))
    before = _files_of(engine)
    initialize(make_model(**WIDE), ds_config(3, zero_section=section, **BF16))
    return before, _files_of(engine)


def test_a_second_engine_empties_the_folder_of_the_first_ones_parameters(tmp_path):
    skip_unless_built("async_io")
    for before, after in run_ranks(_two_engines, on_a_disk(tmp_path), world=2):
        assert (len(before), all(before), any(after)) == (10, True, False)


def test_small_parameters_never_go_to_the_disk(tmp_path):
    skip_unless_built("async_io")

    def files_of_a_small_model():
        return _files_of(initialize(make_model(), ds_config(3, zero_section=on_a_disk(tmp_path), **BF16)))

    assert run_ranks(files_of_a_small_model, world=2) == [[], []]


def _secondary_partition_on(section):
    initialize(make_model(**WIDE), ds_config(3, zero_section=section | {"zero_hpz_partition_size": 2}, **BF16))


def test_a_secondary_partition_of_parameters_on_a_disk_has_no_place(tmp_path):
    skip_unless_built("async_io")
    assert refused(said(_secondary_partition_on, on_a_disk(tmp_path)), "device type at start of device string: nvme")


def test_packed_weights_do_not_come_back_from_a_disk(tmp_path):
    """Matrices of 2 M bytes: each byte comes back as two of bf16."""
    skip_unless_built("async_io")
    sizes = {"hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 1}
    in_memory, on_disk = (
        said(partial(_four_bit, {"zero_optimization": {"stage": 3, **section}, **BF16}, sizes=sizes))
        for section in ({}, on_a_disk(tmp_path))
    )
    assert in_memory == ["", ""]
    assert refused(on_disk, "shape '[2048, 1024]' is invalid for input of size 4194304")


def _ratio(zero, device):
    section = {"offload_optimizer": {"device": device, "ratio": 0.5}}
    DeepSpeedConfig({"train_batch_size": 2, "zero_optimization": {"stage": zero, **section}})


def test_a_ratio_below_zero_3_is_refused_and_one_without_the_cpu_is_taken_for_nothing():
    assert "Partial offloading only supported" in _said(partial(_ratio, 2, "cpu"))
    assert _said(partial(_ratio, 3, "cpu")) == ""
    plain, divided = (
        run_ranks(_trained, 3, section, world=2)[0] for section in ({}, {"offload_optimizer": {"device": "none", "ratio": 0.5}})
    )
    assert divided == plain


@pytest.mark.parametrize("size", [2, 3], ids=["of all ranks", "that divides nothing"])
def test_a_secondary_partition_of_all_ranks_or_of_too_many_is_taken_and_changes_nothing(size):
    plain, twice = (run_ranks(_trained, 3, section, world=2)[0] for section in ({}, {"zero_hpz_partition_size": size}))
    assert twice == plain


def _quantized(section):
    train_engine(initialize(make_model(), ds_config(3, zero_section=section)), make_batches())


def test_quantized_weights_have_no_kernel_on_a_cpu():
    assert refused(said(_quantized, {"zero_quantized_weights": True}), "not been implemented on CPU backend")


def test_quantized_gradients_change_nothing_on_one_node():
    section = {"zero_quantized_gradients": True}
    plain, quantized = (run_ranks(_trained, 3, one, world=2)[0] for one in ({}, section))
    assert quantized == plain


# --- precision, model, batch -----------------------------------------------------------------------------------------------


def _fp16():
    initialize(make_model(), ds_config(1, fp16={"enabled": True}))


def test_fp16_is_refused_on_a_cpu():
    assert refused(said(_fp16), "Type fp16 is not supported on your device")


def _adapted(targets):
    """Names of the modules that got an adapter."""
    model = get_peft_model(make_model(), LoraConfig(r=4, target_modules=targets))
    return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_" in name}


def test_a_target_that_no_block_has_is_refused_alone_and_dropped_without_a_word_beside_others():
    """What is trained is then less than what was asked for."""
    assert "Target modules {'c_attn'} not found" in said(_adapted, ["c_attn"], world=1)[0]
    assert run_ranks(_adapted, ["q_proj", "c_attn"], world=1) == [{"q_proj"}]


def _gpt2_on(tokens):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 8}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes))
    model(input_ids=torch.zeros(1, tokens, dtype=torch.long))


def test_rows_behind_the_last_position_have_none():
    """A table of positions ends; rotary ones go on into angles that the model has never seen."""
    assert said(_gpt2_on, 8, world=1) == [""]
    assert said(_gpt2_on, 9, world=1)[0].startswith("IndexError")


def _batch(rows):
    DeepSpeedConfig({"train_batch_size": rows, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4})


def test_a_batch_that_is_no_product_is_refused():
    assert said(_batch, 8, world=1) == [""]
    assert "train_batch_size is not equal to micro_batch_per_gpu" in said(_batch, 33, world=1)[0]
