"""Ulysses sequence parallelism in raw DeepSpeed: what trains wrongly without a word."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

from tests.stages.traps.tiny import (
    CLOSE,
    ROWS,
    TOKENS,
    Trained,
    ds_config,
    first,
    initialize,
    loss_error,
    make_batches,
    make_model,
    meet,
    norm_of,
    train_alone,
    weights_of,
)
from tests.stages.traps.trap import trap

pytestmark = pytest.mark.ranks

WINDOW = 4
SLIDING = {
    "Mistral": {"sliding_window": WINDOW},
    "Qwen2": {
        "sliding_window": WINDOW,
        "use_sliding_window": True,
        "max_window_layers": 0,
        "layer_types": ["sliding_attention"] * 2,
    },
}


def _positions(restart=TOKENS):
    return (torch.arange(TOKENS) % restart).expand(ROWS, -1)


def _train(
    zero, way="share", family="Llama", changes=None, *, restart=TOKENS, padded=0, given=True, section=None, recompute=None
):
    """(error of a loss, first gradient norm over the right one) of sequence parallelism over all ranks.

    share: this rank's loss is the sum over its tokens over the tokens of the whole row. gather: the mean of all ranks'
    losses, gathered with a gradient, as in transformers and DeepSpeed's ALST recipe.
    """
    rank, world = meet(), dist.get_world_size()
    positions = _positions(restart)
    mask = (torch.arange(TOKENS) >= padded).long().expand(ROWS, -1)
    alone, model = (make_model(family, **(changes or {})) for _ in range(2))
    right = _alone_padded(alone, mask, positions) if padded else train_alone(alone, make_batches(), position_ids=positions)
    if recompute is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": recompute})
    mpu = UlyssesSPAttentionHF.register_with_transformers(
        model, core_attn_implementation="sdpa", sequence_parallel_size=world, micro_batch_size=ROWS
    )
    engine = initialize(model, ds_config(zero, zero_section=section), mpu=mpu)
    losses, norms = [], []
    for rows in make_batches():
        labels = F.pad(rows.masked_fill(mask == 0, -100), (0, 1), value=-100)[:, 1:]
        inputs = (
            {"input_ids": rows} | ({"position_ids": positions} if given else {}) | ({"attention_mask": mask} if padded else {})
        )
        mine = {name: tensor.chunk(world, dim=1)[rank].contiguous() for name, tensor in inputs.items()}
        labels = labels.chunk(world, dim=1)[rank].contiguous()
        logits_STV = engine(**mine).logits
        total = F.cross_entropy(logits_STV.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        tokens = (labels != -100).sum()
        dist.all_reduce(tokens)
        gathered = sum(dist.nn.functional.all_gather(total)) if way == "gather" else total
        engine.backward(gathered / tokens)
        engine.step()
        seen = total.detach().clone()
        dist.all_reduce(seen)
        losses.append((seen / tokens).item())
        norms.append(norm_of(engine))
    got = Trained(losses=losses, norms=norms, weights=weights_of(engine.module))
    return loss_error(got, right), norms[0] / right.norms[0]


def _alone_padded(model, mask, positions):
    losses, norms, optimizer = [], [], torch.optim.SGD(model.parameters(), lr=0.5)
    for rows in make_batches():
        labels = rows.masked_fill(mask == 0, -100)
        loss = model(input_ids=rows, labels=labels, attention_mask=mask, position_ids=positions).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Trained(losses=losses, norms=norms, weights=weights_of(model))


def _with(**options):
    return _train(1, **options)


@trap(33)
@pytest.mark.parametrize(("zero", "way", "ratio"), [(1, "gather", 2.0), (2, "gather", 2.0), (3, "share", 0.5)])
def test_one_loss_gives_gradients_that_differ_by_the_degree_between_zero_2_and_3(zero, way, ratio):
    error, norm_ratio = first(_train, zero, way)
    assert norm_ratio == pytest.approx(ratio, rel=1e-4)
    return error, CLOSE


@pytest.mark.parametrize(("zero", "way"), [(0, "share"), (1, "share"), (2, "share"), (3, "gather")])
def test_the_other_loss_is_right(zero, way):
    error, norm_ratio = first(_train, zero, way)
    assert error < CLOSE
    assert zero == 0 or norm_ratio == pytest.approx(1.0, rel=1e-4)


@trap(33)
def test_at_zero_3_it_depends_on_reduce_scatter_too():
    def without(way):
        return _train(3, way, section={"reduce_scatter": False})

    assert first(without, "share")[1] == pytest.approx(1.0, rel=1e-4)
    return first(without, "gather")[1] - 1.0, 0.5


@trap(34)
def test_packed_rows_see_each_other():
    return first(lambda: _with(restart=TOKENS - 6))[0], 1e-3


@trap(35)
def test_padding_on_the_left_is_attended_to():
    return first(lambda: _with(padded=5))[0], 1e-3


@trap(36)
def test_without_positions_every_shard_counts_from_0():
    """Near its initial weights a model hardly attends by position: the error grows as it learns to."""
    attentive = {"initializer_range": 0.3}
    assert first(lambda: _with(changes=attentive))[0] < CLOSE
    return first(lambda: _with(changes=attentive, given=False))[0], 1e-3


@trap(37)
@pytest.mark.parametrize("family", SLIDING)
def test_a_sliding_window_becomes_full_attention(family):
    wide = {name: 4 * TOKENS if value == WINDOW else value for name, value in SLIDING[family].items()}
    assert first(lambda: _with(family=family, changes=wide))[0] < CLOSE
    return first(lambda: _with(family=family, changes=SLIDING[family]))[0], 1e-3


@pytest.mark.parametrize(("world", "heads"), [(2, 1), (4, 2), (4, 1)])
def test_fewer_key_value_heads_than_ranks_are_right(world, heads):
    assert first(lambda: _with(changes={"num_key_value_heads": heads}), world=world)[0] < CLOSE


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_are_right(reentrant):
    assert first(lambda: _with(recompute=reentrant))[0] < CLOSE


def _by_config():
    config = ds_config(1, sequence_parallel_size=2, train_micro_batch_size_per_gpu=None)
    engine = initialize(make_model(), {name: value for name, value in config.items() if value is not None})
    return engine.train_micro_batch_size_per_gpu(), engine.sequence_parallel_size


@trap(38)
def test_a_degree_in_the_config_alone_changes_the_batch_arithmetic_and_nothing_else():
    """Two replicas of 8 rows each: 16 a step where the config says 8."""
    micro, degree = first(_by_config)
    assert degree == 1
    return micro * 2 / ROWS - 1.0, 0.5
