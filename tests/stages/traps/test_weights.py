"""Weights in raw DeepSpeed: drawn, changed and written in ways that are lost without a word."""

from __future__ import annotations

import deepspeed
import pytest
from transformers import LlamaForCausalLM

from tests.stages.harness import RanksFailed
from tests.stages.test_offload import skip_unless_built
from tests.stages.traps.tiny import (
    BF16,
    CLOSE,
    WIDE,
    ds_config,
    each,
    first,
    initialize,
    loss_error,
    make_batches,
    make_model,
    meet,
    on_a_disk,
    train_alone,
    train_engine,
    weights_of,
)
from tests.stages.traps.trap import trap

pytestmark = pytest.mark.ranks


def _load_late(zero, precision):
    """Weights of another seed, put into the model after initialize."""
    engine, wanted = initialize(make_model(), ds_config(zero, **precision)), make_model(seed=1)
    rank, state = meet(), wanted.state_dict()
    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values()) if zero == 3 else [], modifier_rank=0):
        if zero < 3 or rank == 0:
            for name, parameter in parameters.items():
                parameter.data.copy_(state[name])
    got, right = train_engine(engine, make_batches()), train_alone(wanted, make_batches())
    return abs(got.losses[0] - right.losses[0]), loss_error(got, right)


@trap(18)
def test_weights_loaded_after_initialize_last_for_one_step():
    (_, at_zero_0), *others = each(_load_late, (0, {}), (1, {}), (2, {}), (3, {}), (1, BF16))
    assert at_zero_0 < CLOSE
    assert max(first_step for first_step, _ in others) < 3e-3
    return min(error for _, error in others), 3e-2


def _change_gathered(modifier_rank):
    engine = initialize(make_model(), ds_config(3))
    norm = engine.module.model.norm.weight
    with deepspeed.zero.GatheredParameters([norm], modifier_rank=modifier_rank):
        norm.data.fill_(2.0)
    return weights_of(engine.module)["model.norm.weight"].mean().item()


@trap(19)
def test_a_change_of_gathered_weights_is_dropped_without_a_modifier_rank():
    with_rank, without = each(_change_gathered, 0, None)
    assert with_rank == 2.0
    return abs(without - 2.0), CLOSE


def _draw(partitioned):
    config = make_model(pad_token_id=None).config  # with a padding row it fails: index 0 of an empty tensor
    if not partitioned:
        return LlamaForCausalLM(config).lm_head.weight.std().item()
    meet()
    with deepspeed.zero.Init(config_dict_or_path=ds_config(3)):
        model = LlamaForCausalLM(config)
    return weights_of(model)["lm_head.weight"].std().item()


@trap(20)
def test_zero_init_around_a_model_class_leaves_other_initial_weights():
    right = first(_draw, False, world=1)
    assert right == pytest.approx(0.02, rel=0.1)
    return first(_draw, True) / right - 1.0, 0.5


def _state_dict(folder):
    engine = initialize(make_model(), ds_config(3))
    elements = sum(tensor.numel() for tensor in engine.module.state_dict().values())
    return elements, engine.save_16bit_model(str(folder)), [path.name for path in folder.iterdir()]


@trap(21)
def test_a_state_dict_under_zero_3_holds_empty_tensors(tmp_path):
    elements, saved, files = first(_state_dict, tmp_path)
    assert (saved, files) == (False, [])  # save_16bit_model says so only in what it returns
    return float(elements == 0), 0.5


def _wide(section, sections):
    """Training of a model that is large enough to be swapped, and how many parameters are on the disk at its end."""
    engine = initialize(make_model(**WIDE), ds_config(3, zero_section=section, **sections))
    trained = train_engine(engine, make_batches())
    return trained, sum(weight.ds_tensor.final_location == "nvme" for weight in engine.module.parameters())


def _swapped(section, sections):
    """(loss error against one process, against ZeRO 3 without a disk, parameters on the disk)."""
    (disk, on_disk), (memory, _) = _wide(section, sections), _wide({}, sections)
    right = train_alone(make_model(**WIDE), make_batches())
    return loss_error(disk, right), loss_error(disk, memory), on_disk


@trap(50)
def test_parameters_on_a_disk_are_rounded_to_bf16_on_a_cpu(tmp_path):
    skip_unless_built("async_io")
    error, _, _ = first(_swapped, on_a_disk(tmp_path, {}, max_in_cpu=10**9), {})
    assert list(tmp_path.rglob("*.swp"))
    return error, 10 * CLOSE


def test_in_bf16_parameters_come_back_from_a_disk_as_they_were(tmp_path):
    skip_unless_built("async_io")
    _, error, on_disk = first(_swapped, on_a_disk(tmp_path), BF16)
    assert (error, on_disk) == (0.0, 10)


def test_without_max_in_cpu_parameters_leave_the_disk_for_good_before_the_first_step(tmp_path):
    """The files stay behind, and are never written again."""
    skip_unless_built("async_io")
    _, error, on_disk = first(_swapped, on_a_disk(tmp_path, {}, max_in_cpu=10**9), BF16)
    assert (error, on_disk) == (0.0, 0)
    assert list(tmp_path.rglob("*.swp"))


@pytest.mark.parametrize(
    ("section", "settings", "said"),
    [
        ({"stage3_max_reuse_distance": 0}, {"buffer_count": 30}, "already assigned swap buffer"),
        ({"stage3_prefetch_bucket_size": 0}, {"buffer_count": 5}, "Not enough buffers 0 for swapping 1"),
    ],
    ids=["read ahead", "kept for its next use"],
)
def test_parameters_on_a_disk_stop_where_they_are_read_ahead_or_kept(tmp_path, section, settings, said):
    skip_unless_built("async_io")
    with pytest.raises(RanksFailed, match=said):
        first(_wide, on_a_disk(tmp_path, section, **settings), BF16)
