"""Sampling: model, prompts, one random stream a row → Answers. Used by ppo for its rollouts and by generate for greedy text.

Our own loop and not transformers' `generate`: that one fills unset options from the model folder (top_k 50 where nothing is
said, a repetition penalty, another temperature), and PPO's log-probabilities must belong to the distribution that was sampled.

Each row draws from its own generator, seeded by (seed, what for, iteration, row). So a row's answer does not depend on the
number of ranks, on its neighbours or on a resume.

Shape letters: B sequences, P prompt positions (left padding), T answer positions, N = P + T, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from launcher.train.ppo_losses import answer_mask, position_ids, tempered, token_logps


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Prompts with their answers. All on the model's device; T is the same on every rank, P is not."""

    ids_BN: Tensor  # left padding, prompt, answer, right padding
    attention_BN: Tensor  # 1 on prompt and answer
    mask_BT: Tensor  # float32, 1 on the answer with its end token
    ended_B: Tensor  # bool: the answer has an end token
    sampled_logp_BT: Tensor  # of the distribution that was drawn from; for checks, PPO recomputes its own

    @property
    def answer_BT(self) -> Tensor:
        return self.ids_BN[:, -self.mask_BT.shape[1] :]


def stream(seed: int, purpose: str, iteration: int, row: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random stream of one row. A hash, so that neighbouring numbers give unrelated streams."""
    digest = hashlib.sha256(f"{seed} {purpose} {iteration} {row}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def left_padded(prompts: Sequence[Sequence[int]], *, pad: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(ids, attention) [B, P]: every prompt ends in the last column, where the answer begins."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    attention = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        attention[row, width - len(prompt) :] = 1
    return ids.to(device), attention.to(device)


def draw(logits_BV: Tensor, streams: Sequence[torch.Generator] | None, open_rows: Sequence[bool]) -> Tensor:
    """One token a row: argmax of p / e with e ~ Exp(1), which is exact categorical sampling. Without streams: the best token.

    Close draws make it robust: logits that differ by 1e-6 (other batch, other ZeRO stage) pick another token about once in
    a million, where an inverse distribution function would change far more often. Ended rows draw nothing.
    """
    if streams is None:
        return logits_BV.argmax(-1)
    noise = torch.ones_like(logits_BV)
    for row, generator, is_open in zip(noise, streams, open_rows, strict=True):
        if is_open:
            row.exponential_(generator=generator)
    return (logits_BV - noise.log()).argmax(-1)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    streams: Sequence[torch.Generator] | None,
    temperature: float,
    max_new_tokens: int,
    end: int,
    pad: int,
) -> Answers:
    """Answers of up to `max_new_tokens` tokens, end token included. The model is in eval mode and whole on this rank."""
    device = next(model.parameters()).device
    ids, attention = left_padded(prompts, pad=pad, device=device)
    width = ids.shape[1]
    ids = torch.cat([ids, ids.new_full((len(prompts), max_new_tokens), pad)], 1)
    attention = torch.cat([attention, attention.new_zeros(len(prompts), max_new_tokens)], 1)
    logps = torch.zeros(len(prompts), max_new_tokens, device=device)
    open_B, cache, start = torch.ones(len(prompts), dtype=torch.bool, device=device), None, 0
    open_rows = [True] * len(prompts)
    for now in range(width, width + max_new_tokens):
        output = model(
            input_ids=ids[:, start:now],
            attention_mask=attention[:, :now],
            position_ids=position_ids(attention[:, :now])[:, start:now],
            past_key_values=cache,
            use_cache=True,  # saved configs may say False, which recomputes everything without a word
            logits_to_keep=1,
        )
        cache, start = output.past_key_values, now
        logits = tempered(output.logits[:, -1], temperature=temperature, never=pad)
        token = torch.where(open_B, draw(logits, streams, open_rows), pad)
        ids[:, now], attention[:, now] = token, open_B.long()
        logps[:, now - width] = torch.where(open_B, token_logps(logits, token), 0.0)
        open_B = open_B & (token != end)
        open_rows = open_B.tolist()  # on a GPU the one wait for the device in each turn
        if not any(open_rows):
            break
    answer, answered = ids[:, width:], attention[:, width:]
    return Answers(
        ids_BN=ids,
        attention_BN=attention,
        mask_BT=answer_mask(answer, end=end) * answered,
        ended_B=((answer == end) & (answered == 1)).any(1),
        sampled_logp_BT=logps,
    )


def joined(parts: Sequence[Answers], *, pad: int) -> Answers:
    """One batch of several, padded on the left to the widest prompt."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.ids_BN.shape[1] for part in parts)

    def wider(tensor: Tensor, value: int) -> Tensor:
        return nn.functional.pad(tensor, (width - tensor.shape[1], 0), value=value)

    return Answers(
        ids_BN=torch.cat([wider(part.ids_BN, pad) for part in parts]),
        attention_BN=torch.cat([wider(part.attention_BN, 0) for part in parts]),
        mask_BT=torch.cat([part.mask_BT for part in parts]),
        ended_B=torch.cat([part.ended_B for part in parts]),
        sampled_logp_BT=torch.cat([part.sampled_logp_BT for part in parts]),
    )
