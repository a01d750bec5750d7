"""What a head's scores say of each sequence, whole and split over tensor ranks, in one tile and in many."""

from __future__ import annotations

import pytest

from tests.orders import make_order
from tests.stages.harness import run_ranks

pytestmark = pytest.mark.ranks

SEQUENCES, TOKENS, WIDTH, VOCAB = 2, 12, 16, 61


def _scores(tp: int, shift: float, dtype: str, tiles: int) -> tuple[list[float], list[float], float]:
    """(hits, true hits, largest error of the nats) with logits moved by `shift`, which changes no probability."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from launcher.train.batches import NO_LOSS
    from launcher.train.mesh import make_mesh
    from launcher.train.ranks import leave, meet
    from launcher.train.scoring import token_scores
    from launcher.train.sharding import VocabHead, share

    order = make_order(world=tp, dp=1, tp=tp)
    mesh = make_mesh(order, meet(order))
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCAB).to(getattr(torch, dtype))
    hidden = torch.randn(SEQUENCES, TOKENS, WIDTH).to(head.weight.dtype)
    with torch.no_grad():
        head.bias += shift
        logits = head(hidden).float()
        targets = logits.argmax(-1)
        targets[:, ::3] = (targets[:, ::3] + 1) % VOCAB  # a third is missed
        targets[:, -1] = NO_LOSS
        right = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        own = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        hit = ((targets != NO_LOSS) & (own == logits.amax(-1))).float()
        if tp > 1:
            start, stop = share(0, VOCAB, tp, mesh.tp_rank)
            part = nn.Linear(WIDTH, stop - start)
            part.weight, part.bias = nn.Parameter(head.weight[start:stop].clone()), nn.Parameter(head.bias[start:stop].clone())
            head = VocabHead(part, mesh.tp_group, start, VOCAB)
        nll, hits = token_scores(head, hidden, targets, tiles=tiles)
    error = float((nll - right.sum(1)).abs().max())
    leave()
    return hits.tolist(), hit.sum(1).tolist(), error


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("shift", [0.0, 100.0, -100.0])
def test_a_hit_is_a_hit_wherever_the_logits_lie(tp, shift):
    for tiles in (1, 5):
        for hits, true, error in run_ranks(_scores, tp, shift, "float32", tiles, world=tp):
            assert hits == true
            assert error < 1e-3


def test_so_it_is_in_16_bit_where_rounded_logits_tie():
    [(hits, true, _)] = run_ranks(_scores, 1, 10.0, "bfloat16", 1, world=1)

    assert hits == true
    assert sum(true) < SEQUENCES * (TOKENS - 1), "some must be missed"
