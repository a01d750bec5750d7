"""Which gradients raw DeepSpeed's engine steps with: backward calls, weights without a gradient, scaling, clipping."""

from __future__ import annotations

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.stages.traps.tiny import (
    CLOSE,
    ROWS,
    TwoLayers,
    adamw,
    ds_config,
    each,
    first,
    initialize,
    largest_difference,
    loss_error,
    make_batches,
    make_model,
    mean_over_ranks,
    meet,
    norm_of,
    sgd,
    train_alone,
    train_engine,
    two_rows,
    weights_of,
)
from tests.stages.traps.trap import trap

pytestmark = pytest.mark.ranks

CPU_OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


def _norm_of_backwards(zero, times):
    """Gradient norm after `times` backward calls on one loss, over that after one call on `times` the loss."""
    norms = []
    for calls, factor in ((times, 1), (1, times)):
        engine = initialize(TwoLayers(), ds_config(zero, train_batch_size=2))
        for _ in range(calls):
            engine.backward(factor * engine(two_rows()))
        engine.step()
        norms.append(norm_of(engine))
    return norms[0] / norms[1]


@trap(5)
def test_of_two_backward_calls_before_a_step_only_the_last_one_counts_at_zero_1_and_2():
    *wrong, at_zero_3 = each(_norm_of_backwards, (1, 2), (2, 2), (3, 2))
    assert at_zero_3 == pytest.approx(1.0)
    return min(abs(ratio - 1.0) for ratio in wrong), CLOSE


def _direct_backward(zero, gas):
    """Gradient norm of tensor.backward() over that of engine.backward(), both over `gas` micro-batches of one step."""
    norms = []
    for direct in (True, False):
        config = ds_config(zero, gradient_accumulation_steps=gas, train_batch_size=gas)
        engine = initialize(make_model(), config)
        for _ in range(gas):
            rows = make_batches(1)[0]
            loss = engine(input_ids=rows, labels=rows).loss
            loss.backward() if direct else engine.backward(loss)
            engine.step()
        norms.append(norm_of(engine))
    return norms[0] / norms[1]


@trap(6)
def test_a_direct_backward_call_divides_by_the_accumulation_once_more():
    without, ratio = each(_direct_backward, (1, 1), (1, 4), world=1)
    assert without == pytest.approx(1.0)
    assert ratio == pytest.approx(1 / 4)
    return 1.0 - ratio, CLOSE


def _use_once(zero, section, optimizer=sgd):
    """Movement of the upper layer in a step that does not use it, over its movement in the step before, which did."""
    model = TwoLayers()
    config = ds_config(zero, train_batch_size=2, zero_section=section)
    engine = initialize(model, config, optimizer=optimizer(model))
    moved = []
    for both in (True, False):
        before = weights_of(engine.module)["upper.weight"]
        engine.backward(engine(two_rows(), both))
        engine.step()
        moved.append((weights_of(engine.module)["upper.weight"] - before).abs().max().item())
    return moved[1] / moved[0]


@trap(7)
def test_a_weight_that_a_step_does_not_use_moves_by_its_last_gradient_again():
    ratios = each(_use_once, (3, {}), *((zero, CPU_OFFLOAD) for zero in (1, 2, 3)))
    assert ratios == pytest.approx([1.0] * 4, abs=1e-3)
    return min(ratios), CLOSE


@trap(8)
def test_elsewhere_it_gets_a_gradient_of_zero_so_that_adam_goes_on_moving_it():
    """torch leaves a weight without a gradient alone: no momentum, no decay."""
    ratios = each(_use_once, *((zero, {}, optimizer) for optimizer in (sgd, _plain_adam) for zero in (0, 1, 2)))
    assert ratios[:3] == [0.0, 0.0, 0.0]
    return min(ratios[3:]), CLOSE


def _plain_adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


class Fork(nn.Module):
    """One of two branches of the same size above a common layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lower, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, rows_S4: torch.Tensor, left: bool) -> torch.Tensor:
        lower_S4 = self.lower(rows_S4)
        return (self.left(lower_S4) if left else self.right(lower_S4)).square().mean()


def _one_branch_a_rank(zero):
    """Error of a branch's update over the update, where rank 0 runs the left one and rank 1 the right one."""
    rows, plain = two_rows().chunk(2), Fork()
    start, optimizer = weights_of(plain), sgd(plain)
    (0.5 * (plain(rows[0], True) + plain(rows[1], False))).backward()
    optimizer.step()
    engine = initialize(Fork(), ds_config(zero, train_batch_size=2))
    engine.backward(engine(rows[meet()], meet() == 0))
    engine.step()
    right = weights_of(plain)["left.weight"]
    return ((weights_of(engine.module)["left.weight"] - right).norm() / (start["left.weight"] - right).norm()).item()


@trap(9)
def test_ranks_that_use_different_weights_exchange_the_gradients_of_different_weights():
    at_zero_0, *others = each(_one_branch_a_rank, 0, 1, 2, 3)
    assert at_zero_0 < CLOSE
    return min(others), 0.1


def _left_out_last(zero, section):
    """Error of the upper layer's update over the update: two micro-batches, the second one without it."""
    plain = TwoLayers()
    start, optimizer = weights_of(plain), sgd(plain)
    (0.5 * (plain(two_rows(), True) + plain(two_rows(), False))).backward()
    optimizer.step()
    config = ds_config(zero, train_batch_size=4, gradient_accumulation_steps=2, zero_section=section)
    engine = initialize(TwoLayers(), config)
    for both in (True, False):
        engine.backward(engine(two_rows(), both))
        engine.step()
    right = weights_of(plain)["upper.weight"]
    return ((weights_of(engine.module)["upper.weight"] - right).norm() / (start["upper.weight"] - right).norm()).item()


@trap(10)
def test_a_weight_that_the_last_micro_batch_does_not_use_loses_its_gradient_at_zero_2_with_offload():
    *right, wrong = each(_left_out_last, (2, {}), (3, {}), (1, CPU_OFFLOAD), (2, CPU_OFFLOAD))
    assert max(right) < CLOSE
    return wrong, 0.1


def _thaw(zero):
    """Movements of a layer that was frozen at initialize and is thawed after it, and of the head."""
    model = make_model()
    model.model.layers[0].requires_grad_(False)
    engine = initialize(model, ds_config(zero))
    engine.module.model.layers[0].requires_grad_(True)
    got = train_engine(engine, make_batches(2)).weights
    start = weights_of(make_model())
    names = ("model.layers.0.mlp.up_proj.weight", "lm_head.weight")
    return [(got[name] - start[name]).abs().max().item() for name in names]


@trap(11)
def test_a_weight_that_is_thawed_after_initialize_is_never_trained():
    at_zero_0, *others = each(_thaw, 0, 1, 2, 3)
    assert min(at_zero_0) > 1e-3
    assert min(head for _, head in others) > 1e-3
    return float(all(thawed == 0.0 for thawed, _ in others)), 0.5


def _freeze(zero):
    """Movement of a layer after it was frozen, in a step that comes after one that trained it."""
    model = TwoLayers()
    engine = initialize(model, ds_config(zero, train_batch_size=2), optimizer=_plain_adam(model))
    for frozen in (False, True):
        engine.module.upper.requires_grad_(not frozen)
        before = weights_of(engine.module)["upper.weight"]
        engine.backward(engine(two_rows()))
        engine.step()
    return (weights_of(engine.module)["upper.weight"] - before).abs().max().item()


@trap(12)
def test_a_weight_that_is_frozen_after_initialize_goes_on_moving():
    at_zero_0, *others = each(_freeze, 0, 1, 2, 3)
    assert at_zero_0 == 0.0
    return min(others), CLOSE


def _predivide(zero, factor):
    right = train_alone(make_model(), make_batches())
    section = {"reduce_scatter": False}
    got = train_engine(
        initialize(make_model(), ds_config(zero, zero_section=section, gradient_predivide_factor=factor)), make_batches()
    )
    return loss_error(got, right), got.norms[0] / right.norms[0]


@trap(13)
def test_a_predivide_factor_of_the_number_of_replicas_divides_the_gradients_twice():
    *right, (error, ratio) = each(_predivide, (3, 4.0), (2, 2.0), (3, 2.0))
    assert max(error for error, _ in right) < CLOSE
    assert ratio == pytest.approx(0.5, abs=1e-3)
    return error, CLOSE


def _clipping(zero, given):
    config = {name: value for name, value in ds_config(zero).items() if name != "gradient_clipping"} | given
    rows = make_batches()
    got = train_engine(initialize(make_model(), config), rows)
    return loss_error(got, train_alone(make_model(), rows)), loss_error(got, train_alone(make_model(), rows, clip=1.0))


@trap(14)
def test_an_absent_clipping_clips_at_1():
    errors = each(_clipping, *((zero, {}) for zero in (0, 1, 3)))
    assert max(against_one for _, against_one in errors) < CLOSE
    return min(against_none for against_none, _ in errors), CLOSE


@trap(15)
def test_a_negative_clipping_means_none():
    errors = each(_clipping, *((zero, {"gradient_clipping": -1.0}) for zero in (0, 1, 3)))
    assert max(against_none for against_none, _ in errors) < CLOSE
    return min(against_one for _, against_one in errors), CLOSE


def _checkpointed(frozen):
    """Largest movement of a block behind deepspeed.checkpointing.checkpoint, above an embedding that is trained or not."""
    model = make_model()
    model.model.embed_tokens.requires_grad_(not frozen)
    for block in model.model.layers:
        block.forward = _through_checkpoint(block.forward)
    engine = initialize(model, ds_config(1))
    deepspeed.checkpointing.configure(None, deepspeed_config=None)
    got, start = train_engine(engine, make_batches()).weights, weights_of(make_model())
    return largest_difference(got, {name: start[name] for name in start if ".layers." in name})


def _through_checkpoint(forward):
    def checkpointed(hidden_STH, *args, **kwargs):
        return deepspeed.checkpointing.checkpoint(lambda inner_STH: forward(inner_STH, *args, **kwargs), hidden_STH)

    return checkpointed


@trap(16)
def test_deepspeeds_checkpointing_above_a_frozen_embedding_trains_no_block():
    trained, above_frozen = each(_checkpointed, False, True)
    assert trained > 1e-3
    return float(above_frozen == 0.0), 0.5


def _epochs():
    rows = [torch.tensor([number]) for number in range(4 * ROWS)]
    model = make_model()
    meet()
    loader = deepspeed.initialize(model=model, optimizer=sgd(model), config=ds_config(1), training_data=rows)[2]
    return [[batch.flatten().tolist() for batch in loader] for _ in range(2)]


@trap(17)
def test_deepspeeds_own_loader_repeats_one_order_in_every_epoch():
    epochs = first(_epochs)
    assert epochs[0] != sorted(epochs[0])  # shuffled, once
    return float(epochs[0] == epochs[1]), 0.5


def test_a_sum_of_losses_through_one_backward_call_is_right_everywhere():
    """The way out of trap 5; one micro-batch a call with gradient accumulation is another."""
    assert max(each(_one_backward, 0, 1, 2, 3)) < CLOSE


def _one_backward(zero):
    model, plain = make_model(), make_model()
    engine, optimizer = initialize(model, ds_config(zero)), sgd(plain)
    for rows in make_batches():
        halves = rows.chunk(2)
        sum(plain(input_ids=half, labels=half).loss for half in halves).backward()
        optimizer.step()
        optimizer.zero_grad()
        mine = [half.chunk(dist.get_world_size())[dist.get_rank()] for half in halves]
        engine.backward(sum(engine(input_ids=half, labels=half).loss for half in mine))
        engine.step()
    return largest_difference(weights_of(engine.module), weights_of(plain))


def _twin_flow(rates):
    """Loss error of ZeRO 3 with half of the sub-groups left on the device, here named "cpu:0", under a changing rate."""
    import deepspeed.runtime.zero.stage3 as stage3

    stage3.DeepSpeedCPUAdam = torch.optim.AdamW  # the trap is in DeepSpeed's Python: no operator has to be compiled
    model, plain = make_model(), make_model()
    ours, theirs = adamw(model), adamw(plain)
    section = {"sub_group_size": 1, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}
    engine = initialize(model, ds_config(3, zero_section=section), optimizer=ours)
    places = engine.optimizer.subgroup_to_device
    for number in list(places)[::2]:
        places[number] = "cpu:0"
    errors = []
    for rows, rate in zip(make_batches(), rates, strict=True):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = rate
        mine = rows.chunk(dist.get_world_size())[dist.get_rank()]
        loss = engine(input_ids=mine, labels=mine).loss
        engine.backward(loss)
        engine.step()
        right = plain(input_ids=rows, labels=rows).loss
        right.backward()
        theirs.step()
        theirs.zero_grad()
        errors.append(abs(mean_over_ranks(loss) - right.item()))
    return max(errors)


@trap(47)
def test_with_an_offload_ratio_a_schedule_misses_the_part_on_the_gpu():
    assert first(_twin_flow, [1e-2] * 4) < 1e-4
    return first(_twin_flow, [1e-2, 5e-3, 2e-3, 1e-3]), 1e-3


def _left_on_the_device(sub_group_size):
    """How many sub-groups stay on the device at a ratio of a half, of how many. The device is called "cpu:0" here."""
    import deepspeed.runtime.zero.stage3 as stage3
    from deepspeed.accelerator import get_accelerator

    stage3.DeepSpeedCPUAdam = torch.optim.AdamW
    get_accelerator()._name = "cpu:0"
    section = {"sub_group_size": sub_group_size, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}
    model = make_model()
    places = initialize(model, ds_config(3, zero_section=section), optimizer=adamw(model)).optimizer.subgroup_to_device
    return sum(place == "cpu:0" for place in places.values()), len(places)


@trap(48)
def test_an_offload_ratio_counts_sub_groups_and_one_cannot_be_halved():
    left, of_many = first(_left_on_the_device, 1_000)
    assert left == of_many // 2
    left, of_one = first(_left_on_the_device, 1_000_000_000)
    assert of_one == 1
    return 0.5 - left / of_one, 0.4


class _HeadBeside(nn.Module):
    """Two linear layers of which forward uses the first; the loss multiplies by the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lower, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, rows_S4):
        return self.lower(rows_S4)


def _head_beside(fp32_sums):
    """How far a weight moves that the loss uses behind the module's forward, bf16 at ZeRO 1."""
    section = {"data_types": {"grad_accum_dtype": "fp32"}} if fp32_sums else {}
    model = _HeadBeside()
    start = model.head.weight.detach().clone()
    engine = initialize(model, ds_config(1, bf16={"enabled": True}, **section))
    hidden = engine(two_rows().bfloat16())
    engine.backward(engine.module.head(hidden).float().square().mean())
    engine.step()
    return float((engine.module.head.weight.detach().float() - start).abs().max())


@trap(49)
def test_with_fp32_sums_a_weight_that_only_the_loss_uses_gets_no_gradient():
    moved, lost = each(_head_beside, False, True)
    assert moved > 1e-2
    return moved - lost, 1e-2
