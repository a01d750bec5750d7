"""Tensor parallelism in raw DeepSpeed (AutoTP and its layers): what trains or saves wrongly without a word."""

from __future__ import annotations

import copy

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.comm import comm as ds_comm
from deepspeed.module_inject.layers import LinearLayer, set_autotp_mode
from deepspeed.utils import groups
from torch import nn

from tests.stages.harness import run_ranks
from tests.stages.traps.tiny import (
    CLOSE,
    ROWS,
    STEPS,
    ds_config,
    each,
    first,
    initialize,
    loss_error,
    make_batches,
    make_model,
    mean_over_ranks,
    meet,
    train_alone,
    train_engine,
)
from tests.stages.traps.trap import trap

pytestmark = pytest.mark.ranks


def _engine(model, zero, *, mpu=groups, **sections):
    """AutoTP over two ranks."""
    meet()
    groups._init_tp_mesh_device(tensor_model_parallel_size=2)
    more = {"mpu": mpu} if mpu else {}
    return initialize(model, ds_config(zero, tensor_parallel={"autotp_size": 2}, **sections), **more)


@pytest.mark.parametrize(("family", "changes"), [("Llama", {}), ("Qwen3", {"head_dim": 8}), ("GPTNeoX", {})])
def test_autotp_is_right_where_rows_seeds_and_weights_are_the_same(family, changes):
    """Gradient norm included: no bias of a row layer counts twice, and the norms of Qwen3's heads are summed over the group."""
    assert max(each(_autotp, *((family, changes, zero) for zero in (0, 1, 2, 3)))) < CLOSE


def _autotp(family, changes, zero):
    engine = _engine(make_model(family, **changes), zero, clip=0.5)
    got = train_engine(engine, make_batches(), dp=1, dp_rank=0)
    right = train_alone(make_model(family, **changes), make_batches(), clip=0.5)
    return max(loss_error(got, right), abs(got.norms[0] - right.norms[0]) if zero else 0.0)  # ZeRO 0 tells no norm


def _batch_sizes(mpu):
    engine = _engine(make_model(), 1, mpu=mpu, train_micro_batch_size_per_gpu=ROWS, train_batch_size=None)
    return engine.train_batch_size()


@trap(22)
def test_without_mpu_the_ranks_of_a_tensor_group_count_as_replicas():
    with_mpu, without = each(_batch_sizes, groups, None)
    assert with_mpu == ROWS
    return without / ROWS - 1, 0.5


def _different_rows(from_step):
    engine, losses = _engine(make_model(), 1), []
    for step, rows in enumerate(make_batches()):
        mine = rows.flip(0).roll(1, dims=1) if step >= from_step and dist.get_rank() == 1 else rows
        loss = engine(input_ids=mine, labels=mine).loss
        engine.backward(loss)
        engine.step()
        losses.append(mean_over_ranks(loss))
    return losses


@trap(23)
def test_different_rows_in_a_tensor_group_are_noticed_in_the_first_step_only():
    same, late = each(_different_rows, STEPS, 1)
    with pytest.raises(AssertionError, match="Data inconsistency within the TP group"):
        first(_different_rows, 0)
    return max(abs(a - b) for a, b in zip(late, same, strict=True)), CLOSE


def _dropout(seed_by_rank):
    """How far the replicated weights of the two ranks are apart after training with dropout."""
    model = make_model("GPTNeoX", hidden_dropout=0.1)
    engine = _engine(model, 1)
    torch.manual_seed(7 + (dist.get_rank() if seed_by_rank else 0))
    return _apart(train_engine(engine, make_batches(), dp=1, dp_rank=0).weights["gpt_neox.embed_in.weight"])


def _apart(weight):
    both = [torch.empty_like(weight) for _ in range(2)]
    dist.all_gather(both, weight.contiguous())
    return (both[0] - both[1]).abs().max().item()


@trap(24)
def test_different_seeds_in_a_tensor_group_pull_the_replicated_weights_apart():
    same, different = each(_dropout, False, True)
    assert same == 0.0
    return different, CLOSE


def _different_weights():
    engine = _engine(make_model(seed=meet()), 1)
    got = train_engine(engine, make_batches(), dp=1, dp_rank=0)
    return loss_error(got, train_alone(make_model(), make_batches()))


@trap(25)
def test_weights_are_not_broadcast_inside_a_tensor_group():
    """Ranks that draw with their own seeds train halves of two models; over data-parallel ranks DeepSpeed does broadcast."""
    assert first(_different_weights_of_replicas) < CLOSE
    return first(_different_weights), CLOSE


def _different_weights_of_replicas():
    got = train_engine(initialize(make_model(seed=meet()), ds_config(1)), make_batches())
    return loss_error(got, train_alone(make_model(), make_batches()))


def _column_gradient(transposed):
    """Relative error of the input's gradient behind a column layer."""
    meet()
    set_autotp_mode(training=True)
    torch.manual_seed(0)
    linear = nn.Linear(8, 12, bias=False)
    rows = torch.randn(8, 8)
    gradients = []
    for layer in (copy.deepcopy(linear), LinearLayer(copy.deepcopy(linear), dist.group.WORLD)):
        leaf = rows.clone().requires_grad_()
        layer(leaf.t() if transposed else leaf).square().sum().backward()
        gradients.append(leaf.grad)
    return ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()


@trap(26)
def test_a_gradient_that_is_not_contiguous_is_not_reduced_behind_a_column_layer():
    plain, transposed = each(_column_gradient, False, True)
    assert plain < CLOSE
    return transposed, CLOSE


def _half_saved(folder):
    model = make_model()
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    engine = _engine(model, 1)
    assert engine.save_16bit_model(str(folder))
    if meet():
        return 0
    saved = torch.load(folder / "pytorch_model.bin", weights_only=False)
    return sum(saved[name].shape != shape for name, shape in shapes.items()) / len(shapes)


@trap(27)
def test_save_16bit_model_under_tensor_parallelism_writes_the_shards_of_rank_0(tmp_path):
    return first(_half_saved, tmp_path), 0.0


def _inference_all_reduce(op_loaded):
    """1 + 2 + 3 + 4 = 10 over all ranks; over the groups (0, 1) and (2, 3) 3 and 7."""
    rank = meet()
    groups_of_two = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    value = torch.tensor([rank + 1.0])
    if op_loaded:  # a stand-in: the real one takes a minute to build, knows no groups either and sums over all ranks
        library = torch.library.Library("deepspeed", "FRAGMENT")
        library.define("inference_all_reduce_(Tensor(a!) self) -> Tensor(a!)")
        library.impl("inference_all_reduce_", _sum_over_all, "CPU")
        ds_comm.cdb.shm_vector_kernel_level = 2
    deepspeed.comm.inference_all_reduce(value, group=groups_of_two[rank // 2])
    dist.barrier()
    return value.item()


def _sum_over_all(tensor):
    dist.all_reduce(tensor)
    return tensor


@trap(28)
def test_the_shared_memory_all_reduce_is_not_told_its_group():
    assert run_ranks(_inference_all_reduce, False, world=4) == [3.0, 3.0, 7.0, 7.0]
    return first(_inference_all_reduce, True, world=4) / 3.0 - 1.0, 0.0
