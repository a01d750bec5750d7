"""The arithmetic of PPO: token tensors → rewards, advantages, losses and figures. Pure functions of torch, no engine.

Every one of them is tested against numbers worked out by hand (tests/unit/test_ppo_losses.py).

Shape letters: B sequences, T answer positions (the same width on all ranks), N = P + T positions of prompt and answer,
V vocabulary. Masks are 1 on the answer's tokens, its end token included, and 0 behind them. float32 unless said.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

KL_GAIN = 0.1  # Ziegler et al. 2019, arXiv 1909.08593, section 2.2: K_beta
KL_ERROR_LIMIT = 0.2  # the same: the proportional error is clipped to +- this


def _same(sums: Tensor) -> Tensor:
    return sums


def answer_mask(answer_BT: Tensor, *, end: int) -> Tensor:
    """1 up to and including the first end token, 0 behind it. float32."""
    is_end = (answer_BT == end).long()
    return ((is_end.cumsum(1) - is_end) == 0).float()


def position_ids(attention_BN: Tensor) -> Tensor:
    """Positions counted from the first real token: with left padding a model would count from the padding."""
    return (attention_BN.long().cumsum(1) - 1).clamp(min=0)


def tempered(logits_BTV: Tensor, *, temperature: float, never: int) -> Tensor:
    """Logits of the sampling distribution: divided by the temperature, the padding token `never` drawn.

    Sampling and scoring must both go through here, or the log-probabilities belong to another distribution.
    """
    scaled = logits_BTV.float() / temperature
    scaled[..., never] = torch.finfo(torch.float32).min  # in place: the largest tensor of the step is not copied again
    return scaled


def token_logps(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Log-probability of each token in nats. The logits are those of the position before the token."""
    chosen = logits_BTV.gather(-1, tokens_BT.unsqueeze(-1)).squeeze(-1)
    return chosen - logits_BTV.logsumexp(-1)


def entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy of each position's distribution in nats."""
    logp = logits_BTV.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def token_rewards(score_B: Tensor, logp_BT: Tensor, ref_logp_BT: Tensor, mask_BT: Tensor, *, kl_coef: float) -> Tensor:
    """-kl_coef * (logp - ref_logp) on every answer token, plus the score on the last one, which is not column T - 1."""
    rewards = -kl_coef * (logp_BT - ref_logp_BT) * mask_BT
    last_B = mask_BT.sum(1).long() - 1
    return rewards.scatter_add(1, last_B.unsqueeze(1), score_B.unsqueeze(1).to(rewards.dtype))


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns), arXiv 1506.02438. The value behind the last answer token is 0: the answer ends there."""
    advantages = torch.zeros_like(rewards_BT)
    after_B = next_value_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        after_B = (delta_B + gamma * lam * after_B) * mask_BT[:, t]
        advantages[:, t] = after_B
        next_value_B = values_BT[:, t] * mask_BT[:, t]  # what lies behind the end must not leak in
    return advantages, advantages + values_BT


def whiten(x_BT: Tensor, mask_BT: Tensor, *, sum_over_ranks: Callable[[Tensor], Tensor] = _same) -> Tensor:
    """Zero mean, unit variance over the answer tokens of all ranks; whitened per rank, the same advantage would differ."""
    total, count = sum_over_ranks(torch.stack([(x_BT * mask_BT).sum(), mask_BT.sum()]))
    mean = total / count
    variance = sum_over_ranks(((x_BT - mean) ** 2 * mask_BT).sum()) / count
    return (x_BT - mean) * torch.rsqrt(variance + 1e-8) * mask_BT


def policy_loss(
    logp_BT: Tensor, old_logp_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, *, clip: float, num_tokens: Tensor | float
) -> tuple[Tensor, Tensor]:
    """(clipped loss, ratios), arXiv 1707.06347 eq. 7. Summed over tokens and divided by `num_tokens`, not averaged.

    With num_tokens = tokens of the whole optimizer step over all ranks, divided by the ranks, the engines' average over
    ranks and the sum over accumulated micro-batches give the mean over all tokens, however they are split.
    """
    ratio = torch.exp((logp_BT - old_logp_BT) * mask_BT)
    worst = torch.max(-advantages_BT * ratio, -advantages_BT * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask_BT).sum() / num_tokens, ratio


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float, num_tokens: Tensor | float
) -> Tensor:
    """Half the squared error, the larger of plain and with the value moved at most `clip` from its old one."""
    moved = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    worst = torch.max((values_BT - returns_BT) ** 2, (moved - returns_BT) ** 2)
    return 0.5 * (worst * mask_BT).sum() / num_tokens


def explained_variance_sums(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[tokens, sum r, sum r^2, sum e, sum e^2] of returns r and errors e = r - v. Sums add up over ranks. float64."""
    r = (returns_BT * mask_BT).double()
    e = ((returns_BT - values_BT) * mask_BT).double()
    return torch.stack([mask_BT.double().sum(), r.sum(), (r * r).sum(), e.sum(), (e * e).sum()])


def explained_variance(sums: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that knows only the mean. 0 without variance."""
    n, r, rr, e, ee = sums.tolist()
    variance, unexplained = rr / n - (r / n) ** 2, ee / n - (e / n) ** 2
    return 1.0 - unexplained / variance if variance > 1e-12 else 0.0


def adapted_kl_coef(kl_coef: float, *, kl: float, target: float) -> float:
    """The next KL coefficient: 10 % of the proportional error, which is clipped to +- 0.2 (Ziegler et al. 2019)."""
    error = max(-KL_ERROR_LIMIT, min(KL_ERROR_LIMIT, kl / target - 1.0))
    return kl_coef * (1.0 + KL_GAIN * error)


def rate_share(iteration: int, iterations: int, *, warmup: float, schedule: str) -> float:
    """Share of the peak learning rate in `iteration` (counted from 0): rises over the warm-up, then falls to 0 or stays.

    One rate for a whole iteration. The first one already moves: a warm-up of k iterations uses 1/k, 2/k, …, 1.
    """
    rising = math.ceil(iterations * warmup)
    if iteration < rising:
        return (iteration + 1) / rising
    gone = (iteration - rising) / max(1, iterations - rising)
    return {"cosine": 0.5 * (1.0 + math.cos(math.pi * gone)), "linear": 1.0 - gone, "constant": 1.0}[schedule]


def minibatch_order(num_slots: int, num_lanes: int, *, generator: torch.Generator) -> Tensor:
    """[slots, lanes]: which slot of each lane goes into each minibatch. Minibatch k takes row order[k, lane] * lanes + lane.

    A lane is a place in the global batch and belongs to one rank (lane % world). Every lane is shuffled on its own, so a
    minibatch holds the same rows for any number of ranks and nobody sends rows around.
    """
    return torch.rand(num_slots, num_lanes, generator=generator).argsort(0)
