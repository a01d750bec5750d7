"""Raw DeepSpeed pipelines: what trains wrongly without a word."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import Tensor, nn

from tests.stages.harness import fork_ranks
from tests.stages.traps.tiny import (
    BF16,
    CLOSE,
    ROWS,
    VOCAB,
    ds_config,
    each,
    first,
    initialize,
    make_batches,
    meet,
    norm_of,
    sgd,
)
from tests.stages.traps.trap import trap

pytestmark = pytest.mark.ranks

WIDTH, BLOCKS = 32, 4


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH)

    @property
    def weight(self) -> Tensor:
        """What TiedLayerSpec shares."""
        return self.table.weight

    def forward(self, ids_ST: Tensor) -> Tensor:
        return self.table(ids_ST)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, hidden_STH: Tensor) -> Tensor:
        return hidden_STH + self.layers(hidden_STH)


class Noise(nn.Module):
    """Dropout that keeps its last mask."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(VOCAB))

    def forward(self, rows_SV: Tensor) -> Tensor:
        self.mask = F.dropout(torch.ones_like(rows_SV), 0.5)
        return rows_SV * self.scale


def _by_embedding(embed: Embed, hidden_STH: Tensor) -> Tensor:
    return F.linear(hidden_STH, embed.weight)


def _loss(logits_STV: Tensor, ids_ST: Tensor) -> Tensor:
    return F.cross_entropy(logits_STV[:, :-1].float().reshape(-1, VOCAB), ids_ST[:, 1:].reshape(-1))


def _stages(whole: list[nn.Module], *, tied: bool, loss=_loss) -> PipelineModule:
    """Two stages with the weights of `whole`: embedding, blocks and, where the embedding is not tied to it, a head."""
    blocks = [LayerSpec(Block) for _ in range(BLOCKS)]
    ends = (
        [TiedLayerSpec("table", Embed, forward_fn=_by_embedding)] if tied else [LayerSpec(nn.Linear, WIDTH, VOCAB, bias=False)]
    )
    start = TiedLayerSpec("table", Embed) if tied else LayerSpec(Embed)
    module = PipelineModule([start, *blocks, *ends], num_stages=2, loss_fn=loss)
    for place, layer in enumerate(module.forward_funcs, start=module._local_start):
        target = layer.args[0] if isinstance(layer, partial) else layer
        target.load_state_dict(whole[0 if tied and place > BLOCKS else place].state_dict())
    return module


def _whole(*, tied: bool) -> list[nn.Module]:
    torch.manual_seed(0)
    layers = [Embed(), *[Block() for _ in range(BLOCKS)]]
    return layers if tied else [*layers, nn.Linear(WIDTH, VOCAB, bias=False)]


def _train(zero, tied, clip, sections):
    """Largest error of a loss and of the first gradient norm of PP2 with four micro-batches; 0 where no norm is told."""
    meet()
    whole = _whole(tied=tied)
    config = ds_config(zero, clip=clip, gradient_accumulation_steps=4, pipeline={"use_reentrant": False}, **sections)
    module = _stages(whole, tied=tied)
    engine, plain = initialize(module, config), nn.Sequential(*whole)
    optimizer, errors = sgd(plain), []
    for rows in make_batches():
        logits_STV = plain(rows)
        loss = _loss(_by_embedding(whole[0], logits_STV) if tied else logits_STV, rows)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), clip).item()
        optimizer.step()
        optimizer.zero_grad()
        got = engine.train_batch(iter([(micro, micro) for micro in rows.chunk(4)])).item()
        errors.append((abs(got - loss.item()), abs(norm_of(engine) / norm - 1.0) if zero else 0.0))
    return max(error for error, _ in errors), errors[0][1]


@trap(29)
def test_clipping_at_zero_0_takes_the_norm_of_the_first_stage():
    cases = [(zero, tied, 0.3, {}) for zero in (0, 1) for tied in (False, True)]
    *wrong, plain, tied = each(_train, *cases)
    assert max(plain[0], tied[0]) < CLOSE
    assert max(plain[1], tied[1]) < 1e-5  # ZeRO 1 counts all stages, and tied weights once
    return min(error for error, _ in wrong), 1e-3


def test_the_norm_is_right_in_bf16_whatever_the_gradients_are_summed_in():
    sections = (BF16, BF16 | {"data_types": {"grad_accum_dtype": "fp32"}})
    assert max(norm_error for _, norm_error in each(_train, *((1, True, 0.3, section) for section in sections))) < 5e-3


def _tables_apart(sections):
    """Largest difference of the tied weight between the stages, after some steps with the optimizer on the host."""
    meet()
    config = ds_config(
        1,
        zero_section={"offload_optimizer": {"device": "cpu"}},
        gradient_accumulation_steps=4,
        pipeline={"use_reentrant": False},
        **sections,
    )
    engine = initialize(_stages(_whole(tied=True), tied=True), config)
    for rows in make_batches():
        engine.train_batch(iter([(micro, micro) for micro in rows.chunk(4)]))
    (table, _), *_ = engine.module.get_tied_weights_and_groups()
    tables = [torch.empty_like(table) for _ in range(2)]
    dist.all_gather(tables, table.detach())
    return (tables[0] - tables[1]).abs().max().item()


@trap(51)
def test_under_offload_the_copies_of_a_tied_weight_part_with_fp32_sums():
    plain, in_bf16, in_fp32 = each(_tables_apart, {}, BF16, BF16 | {"data_types": {"grad_accum_dtype": "fp32"}})
    assert max(plain, in_bf16) == 0
    return in_fp32, 1e-3


def _masks():
    """Share of equal dropout decisions in the two stages; 0.5 if they were independent."""
    meet()
    torch.manual_seed(5)
    module = PipelineModule([LayerSpec(Noise), LayerSpec(Noise)], num_stages=2, loss_fn=lambda rows, _: rows.sum())
    engine = initialize(module, ds_config(1))
    torch.manual_seed(5)  # as a script that sets one seed in every rank does
    rows = torch.ones(ROWS, VOCAB)
    engine.train_batch(iter([(rows, rows)]))
    masks = [torch.empty(ROWS, VOCAB) for _ in range(2)]
    dist.all_gather(masks, engine.module.forward_funcs[0].mask)
    return (masks[0] == masks[1]).float().mean().item()


@trap(30)
def test_stages_of_one_seed_draw_one_dropout_mask():
    return first(_masks) - 0.5, 0.1


def _shorter_rows(reset):
    """Error of the second loss, over rows half as long, where the loss compares no shapes."""
    meet()
    whole = _whole(tied=False)
    module = _stages(whole, tied=False, loss=lambda logits_STV, _: logits_STV.float().logsumexp(-1).mean())
    engine = initialize(module, ds_config(1))
    rows = make_batches(1)[0]
    engine.train_batch(iter([(rows, rows)]))
    if reset:
        engine.reset_activation_shape()
    short = rows[:, : rows.shape[1] // 2]
    got = engine.eval_batch(iter([(short, short)]), num_micro_batches=1).item()
    layers = [None] * 2
    dist.all_gather_object(layers, [layer.state_dict() for layer in engine.module.forward_funcs])
    for layer, state in zip(whole, layers[0] + layers[1], strict=True):
        layer.load_state_dict(state)
    return abs(got - nn.Sequential(*whole)(short).logsumexp(-1).mean().item())


@trap(31)
def test_shorter_rows_reach_the_next_stage_with_what_the_buffer_held_before():
    reset, kept = each(_shorter_rows, True, False)
    assert reset < CLOSE
    return kept, CLOSE


def _asked_stages(asked):
    meet()
    engine = initialize(_stages(_whole(tied=False), tied=False), ds_config(1, pipeline={"stages": asked}))
    return engine.num_stages


@trap(32)
def test_the_number_of_stages_in_the_config_is_ignored():
    return float(first(_asked_stages, 7) == 2), 0.5


def _too_few():
    meet()
    engine = initialize(_stages(_whole(tied=False), tied=False), ds_config(1, gradient_accumulation_steps=4))
    rows = make_batches(1)[0]
    engine.train_batch(iter([(micro, micro) for micro in rows.chunk(4)[:2]]))


def test_an_iterator_that_ends_early_is_an_error_not_a_smaller_step():
    ends = fork_ranks(_too_few, world=2)
    assert all(end.exit_code for end in ends)
    assert any("StopIteration" in (end.error or "") for end in ends)


def _evaluate_between():
    meet()
    whole = _whole(tied=False)
    engine = initialize(_stages(whole, tied=False), ds_config(1, gradient_accumulation_steps=4))
    plain = nn.Sequential(*whole)
    optimizer, errors = sgd(plain), []
    for rows in make_batches():
        some = rows[:6]
        with torch.no_grad():
            right = _loss(plain(some), some).item()
        errors.append(abs(engine.eval_batch(iter([(two, two) for two in some.split(2)]), num_micro_batches=3).item() - right))
        loss = _loss(plain(rows), rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(abs(engine.train_batch(iter([(two, two) for two in rows.split(2)])).item() - loss.item()))
    return max(errors)


def test_evaluating_another_number_of_micro_batches_in_between_changes_nothing():
    assert first(_evaluate_between) < CLOSE
