"""bf16 and fp16 in raw DeepSpeed: what trains wrongly without a word."""

from __future__ import annotations

import math

import pytest
import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from tests.stages.traps.tiny import (
    BF16,
    STEPS,
    TwoLayers,
    ds_config,
    each,
    initialize,
    largest_difference,
    loss_error,
    make_batches,
    make_model,
    train_alone,
    train_engine,
    two_rows,
    weights_of,
)
from tests.stages.traps.trap import trap

pytestmark = pytest.mark.ranks


def _first_adam_step(zero):
    """How far the first step moves a weight, in units of the learning rate: 1 - 1e-8/|g|, without decay."""
    model = make_model()
    before = weights_of(model)
    engine = initialize(
        model, ds_config(zero, **BF16), optimizer=torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    )
    moved = train_engine(engine, make_batches(1)).weights["lm_head.weight"] - before["lm_head.weight"]
    return moved.abs().max().item() / 0.1


@trap(1)
def test_bf16_at_zero_0_starts_adam_at_its_second_step():
    wrong, right = each(_first_adam_step, 0, 1)
    assert right == pytest.approx(1.0, abs=0.02)
    return right - wrong, 0.1


def _fp16(zero, power, window=1000, steps=STEPS):
    """As on a GPU: this CPU can compute in fp16, DeepSpeed only does not trust it to."""
    CPU_Accelerator.is_fp16_supported = lambda self: True
    section = {"enabled": True, "initial_scale_power": power, "loss_scale_window": window}
    right = train_alone(make_model(), make_batches(steps))
    got = train_engine(initialize(make_model(), ds_config(zero, fp16=section)), make_batches(steps))
    moved = largest_difference(got.weights, weights_of(make_model()))
    return loss_error(got, right), moved


@trap(2)
def test_fp16_at_zero_0_divides_the_gradients_by_the_loss_scale():
    (error, moved), (right, _) = each(_fp16, (0, 12), (1, 12))
    assert moved < 1e-3  # hardly anything is learned
    assert right < 2e-3
    return error, 1e-2


@trap(3)
def test_fp16_halves_the_gradient_of_the_step_at_which_the_scale_grows():
    (steady, _), (growing, _) = each(_fp16, (1, 8, 1000, 6), (1, 8, 2, 6))
    assert steady < 2e-3
    return growing, 5 * steady


def _not_a_number(zero):
    model = TwoLayers()
    engine = initialize(model, ds_config(zero, train_batch_size=2))
    engine.backward(engine(two_rows()) * float("nan"))
    before = weights_of(TwoLayers())
    engine.step()
    return engine.skipped_steps, largest_difference(weights_of(engine.module), before)


@trap(4)
def test_a_loss_that_is_no_number_skips_the_step_without_a_word_and_is_written_into_the_weights_at_zero_0():
    (skipped, moved), *others = each(_not_a_number, 0, 1, 2, 3)
    assert skipped == 0
    assert math.isnan(moved)
    assert [moved for _, moved in others] == [0.0, 0.0, 0.0]
    return min(skipped for skipped, _ in others), 0
