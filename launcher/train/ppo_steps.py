"""One iteration of PPO: prompts → answers → Experience (scored, with advantages) → optimizer steps. Called in lock step.

Rows of a rollout are numbered 0 … rollout - 1 over all ranks. Row r stands in lane r % global batch, and a lane belongs to
rank lane % world: so the rows of a minibatch, and with them every number here, are the same for any number of ranks.

Shape letters: B rows of this rank, T answer positions, N positions of prompt and answer, S slots (minibatches a pass).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.spec.stages import Ppo
from launcher.train.leaving import asked_to_leave
from launcher.train.ppo_engines import whole_for_sampling
from launcher.train.ppo_losses import (
    entropy,
    explained_variance,
    explained_variance_sums,
    gae,
    minibatch_order,
    policy_loss,
    token_logps,
    token_rewards,
    value_loss,
    whiten,
)
from launcher.train.ppo_models import Models
from launcher.train.ranks import gather, total
from launcher.train.rollout import Answers, joined, sample, stream

# Rows sampled at once, in micro-batches: without gradients a row needs far less memory than a training forward gives it.
SAMPLED_MICRO_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How a rollout is split. rollout = slots x lanes; lanes = the global batch = micro x accumulation x world."""

    rank: int
    world: int
    micro: int
    accum: int
    slots: int

    @property
    def lanes(self) -> int:
        return self.micro * self.accum * self.world

    @property
    def rollout(self) -> int:
        return self.slots * self.lanes

    @property
    def my_lanes(self) -> range:
        return range(self.rank, self.lanes, self.world)

    @property
    def my_rows(self) -> list[int]:
        """This rank's rows of a rollout, slot by slot."""
        return [slot * self.lanes + lane for slot in range(self.slots) for lane in self.my_lanes]

    def minibatches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Local row numbers of each optimizer step of one pass, cut into micro-batches."""
        order = minibatch_order(self.slots, self.lanes, generator=generator)[:, list(self.my_lanes)]
        rows = order * len(self.my_lanes) + torch.arange(len(self.my_lanes))
        for minibatch in rows:
            yield minibatch.split(self.micro)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """This rank's rows of one rollout, ready to be learned from. Nothing in it carries gradients."""

    answers: Answers
    score_B: Tensor  # the reward model's, without any penalty
    logp_BT: Tensor
    ref_logp_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor  # whitened over all ranks
    returns_BT: Tensor
    figures: dict[str, float]


def roll_out(
    models: Models, prompts: Sequence[Sequence[int]], streams: Sequence[torch.Generator], *, stage: Ppo, micro: int
) -> Answers:
    """Sampled answers to this rank's prompts. Under ZeRO-3 the actor is gathered once for all of them. Collective."""
    chunk, parts = micro * SAMPLED_MICRO_BATCHES, []
    with whole_for_sampling(models.actor) as actor:
        for start in range(0, len(prompts), chunk):
            rows = slice(start, start + chunk)
            parts.append(
                sample(
                    actor,
                    prompts[rows],
                    streams=streams[rows],
                    temperature=stage.temperature,
                    max_new_tokens=stage.max_new_tokens,
                    end=models.end,
                    pad=models.pad,
                )
            )
    return joined(parts, pad=models.pad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the four models say of answers, before rewards are made of it."""

    score_B: Tensor
    logp_BT: Tensor
    ref_logp_BT: Tensor
    values_BT: Tensor
    entropy_BT: Tensor

    def kl_B(self, mask_BT: Tensor) -> Tensor:
        """Nats per answer: log-probability under the actor minus under the reference, summed over the answer's tokens."""
        return ((self.logp_BT - self.ref_logp_BT) * mask_BT).sum(1)


@torch.no_grad()
def judge(models: Models, answers: Answers, *, micro: int) -> Judged:
    """In micro-batches, equally many on every rank: under ZeRO-3 each forward pass is collective.

    The log-probabilities come from the training forward, not from the sampling: the first ratio of PPO is then exactly 1.
    """
    width, parts = answers.mask_BT.shape[1], []
    for ids, attention in zip(answers.ids_BN.split(micro), answers.attention_BN.split(micro), strict=True):
        tokens = ids[:, -width:]
        logits = models.answer_logits(models.actor, ids, attention, width)
        logps, spread = token_logps(logits, tokens), entropy(logits)
        del logits
        ref_logps = token_logps(models.reference_logits(ids, attention, width), tokens)
        parts.append((models.scores(ids, attention), logps, ref_logps, models.values(ids, attention, width), spread))
    score, logp, ref_logp, values, spread = (torch.cat(column) for column in zip(*parts, strict=True))
    return Judged(score_B=score, logp_BT=logp, ref_logp_BT=ref_logp, values_BT=values, entropy_BT=spread)


def collect(
    models: Models, prompts: Sequence[Sequence[int]], *, stage: Ppo, sizes: Sizes, seed: int, iteration: int, kl_coef: float
) -> Experience:
    """Sample, judge and turn into advantages. `prompts`: the whole rollout's, each rank takes its rows. Collective."""
    rows = sizes.my_rows
    streams = [stream(seed, "rollout", iteration, row, models.device) for row in rows]
    answers = roll_out(models, [prompts[row] for row in rows], streams, stage=stage, micro=sizes.micro)
    judged, mask = judge(models, answers, micro=sizes.micro), answers.mask_BT
    values = judged.values_BT * mask
    penalty_B = stage.unfinished_penalty * (~answers.ended_B).float()
    rewards = token_rewards(judged.score_B - penalty_B, judged.logp_BT, judged.ref_logp_BT, mask, kl_coef=kl_coef)
    advantages, returns = gae(rewards, values, mask, gamma=stage.gamma, lam=stage.lam)
    figures = answer_figures(answers, judged, weight_B=torch.ones_like(judged.score_B))
    figures["explained_variance"] = explained_variance(total(explained_variance_sums(values, returns, mask)))
    return Experience(
        answers=answers,
        score_B=judged.score_B,
        logp_BT=judged.logp_BT,
        ref_logp_BT=judged.ref_logp_BT,
        values_BT=values,
        advantages_BT=whiten(advantages, mask, sum_over_ranks=lambda sums: total(sums).float()),
        returns_BT=returns,
        figures=figures,
    )


def answer_figures(answers: Answers, judged: Judged, *, weight_B: Tensor) -> dict[str, float]:
    """Means over the answers of all ranks; rows of weight 0 only keep the ranks in step. Collective."""
    mask = answers.mask_BT
    sums = torch.stack(
        [
            weight_B.sum(),
            (judged.score_B * weight_B).sum(),
            (judged.kl_B(mask) * weight_B).sum(),
            (mask.sum(1) * weight_B).sum(),
            (answers.ended_B * weight_B).sum(),
            ((judged.entropy_BT * mask).sum(1) * weight_B).sum(),
        ]
    )
    rows, score, kl, length, finished, spread = total(sums).tolist()
    return {
        "score": score / rows,
        "kl": kl / rows,
        "length": length / rows,
        "finished": finished / rows,
        "entropy": spread / length,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What all passes over one rollout came to; the same on all ranks."""

    figures: dict[str, float]
    leave: bool  # some rank was asked to leave


def learn(models: Models, experience: Experience, *, stage: Ppo, sizes: Sizes, seed: int, iteration: int) -> Learned:
    """All passes over one rollout: actor and critic, an optimizer step of each a minibatch. Collective.

    Losses are sums over tokens, divided by the tokens of the whole minibatch on all ranks and micro-batches. The engine must
    not divide by the accumulation once more, hence scale_wrt_gas=False.
    """
    answers = experience.answers
    width, mask_BT = answers.mask_BT.shape[1], answers.mask_BT
    passes = [list(sizes.minibatches(stream(seed, "minibatches", iteration, number))) for number in range(stage.ppo_epochs)]
    minibatches = [minibatch for one in passes for minibatch in one]
    tokens = total(torch.stack([mask_BT[torch.cat(micros)].sum() for micros in minibatches])).float() / sizes.world
    sums = torch.zeros(4, device=models.device)  # policy loss, value loss, clipped tokens, tokens
    ratio_first, norms = 0.0, []
    for number, (micros, num_tokens) in enumerate(zip(minibatches, tokens, strict=True)):
        for rows in micros:
            ids, attention, mask = answers.ids_BN[rows], answers.attention_BN[rows], mask_BT[rows]
            logp = token_logps(models.answer_logits(models.actor, ids, attention, width), ids[:, -width:])
            loss, ratio = policy_loss(
                logp,
                experience.logp_BT[rows],
                experience.advantages_BT[rows],
                mask,
                clip=stage.clip_ratio,
                num_tokens=num_tokens,
            )
            models.actor.backward(loss, scale_wrt_gas=False)
            models.actor.step()
            critic_loss = value_loss(
                models.values(ids, attention, width),
                experience.values_BT[rows],
                experience.returns_BT[rows],
                mask,
                clip=stage.clip_value,
                num_tokens=num_tokens,
            )
            models.critic.backward(critic_loss, scale_wrt_gas=False)
            models.critic.step()
            off = (ratio.detach() - 1.0).abs() * mask
            sums += torch.stack([loss.detach(), critic_loss.detach(), (off > stage.clip_ratio).sum(), mask.sum()])
            if number == 0:
                ratio_first = max(ratio_first, off.max().item())
        norms.append((models.actor.get_global_grad_norm(), models.critic.get_global_grad_norm()))
    loss, critic_loss, clipped, counted = total(sums).tolist()
    steps = len(minibatches) * sizes.world
    told = gather((ratio_first, asked_to_leave()))
    figures = {
        "policy_loss": loss / steps,
        "value_loss": critic_loss / steps,
        "clipped": clipped / counted,
        "ratio_first": max(ratio for ratio, _ in told),
    }
    return Learned(figures=figures | _mean_norms(norms), leave=any(asked for _, asked in told))


def _mean_norms(norms: Sequence[tuple[float | None, float | None]]) -> dict[str, float]:
    """Gradient norms before clipping. Nothing at ZeRO 0 in fp32, where DeepSpeed keeps none."""
    names = ("grad_norm", "critic_grad_norm")
    columns = zip(names, zip(*norms, strict=True), strict=True)
    return {name: sum(map(float, column)) / len(column) for name, column in columns if None not in column}


@torch.no_grad()
def evaluate(
    models: Models, prompts: Sequence[Sequence[int]], *, stage: Ppo, sizes: Sizes, seed: int
) -> tuple[dict[str, float], list[list[int]]]:
    """(figures, rank 0's answers) on held-out prompts, with a fixed stream each: before and after draw alike. Collective."""
    per_rank = -(-len(prompts) // sizes.world)
    mine = [sizes.rank + sizes.world * turn for turn in range(per_rank)]
    rows = [min(row, len(prompts) - 1) for row in mine]  # a rank that runs out repeats the last prompt, at weight 0
    streams = [stream(seed, "held out", 0, row, models.device) for row in rows]
    answers = roll_out(models, [prompts[row] for row in rows], streams, stage=stage, micro=sizes.micro)
    judged = judge(models, answers, micro=sizes.micro)
    weight_B = torch.tensor([float(row < len(prompts)) for row in mine], device=models.device)
    figures = answer_figures(answers, judged, weight_B=weight_B)
    figures.pop("entropy")
    lengths = answers.mask_BT.sum(1).long().tolist()
    return figures, [row[:length] for row, length in zip(answers.answer_BT.tolist(), lengths, strict=True)]
