"""The four models of PPO as one noun, and what each says of a batch: logits, values, scores. Made in train/ppo_engines.py.

Shape letters: B sequences, T answer positions, N positions of prompt and answer, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from launcher.train.ppo_losses import position_ids, tempered


class TokenScores(nn.Module):
    """A reward model that gives its score at every token: [B, N] float32. As critic its values, as scorer the last one counts.

    Built around the sequence classification head, which all families name `score`; their token classification heads differ.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        body = self.model.base_model
        output = body(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
        return self.model.score(output.last_hidden_state).squeeze(-1).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What PPO works with. `reference` is None where it is the actor with its adapter off.

    `silenced` names the dropouts that were not 0 and are now.
    """

    actor: deepspeed.DeepSpeedEngine
    critic: deepspeed.DeepSpeedEngine
    reference: nn.Module | None
    scorer: nn.Module
    end: int
    pad: int
    temperature: float
    device: torch.device
    silenced: tuple[str, ...] = ()

    def answer_logits(self, model: nn.Module, ids_BN: Tensor, attention_BN: Tensor, width: int) -> Tensor:
        """Tempered logits [B, T, V] of the last `width` tokens: those of the position before each of them."""
        logits = model(
            input_ids=ids_BN,
            attention_mask=attention_BN,
            position_ids=position_ids(attention_BN),
            use_cache=False,
            logits_to_keep=width + 1,
        ).logits
        return tempered(logits[:, :-1], temperature=self.temperature, never=self.pad)

    def reference_logits(self, ids_BN: Tensor, attention_BN: Tensor, width: int) -> Tensor:
        if self.reference is not None:
            return self.answer_logits(self.reference, ids_BN, attention_BN, width)
        with self.actor.module.disable_adapter():
            return self.answer_logits(self.actor, ids_BN, attention_BN, width)

    def values(self, ids_BN: Tensor, attention_BN: Tensor, width: int) -> Tensor:
        """The critic's values [B, T]: what it expects before each answer token is drawn."""
        return self.critic(ids_BN, attention_BN, position_ids(attention_BN))[:, -width - 1 : -1]

    def scores(self, ids_BN: Tensor, attention_BN: Tensor) -> Tensor:
        """The reward model's score [B] at the last real token, wherever padding is."""
        scores_BN = self.scorer(ids_BN, attention_BN, position_ids(attention_BN))
        last_B = (attention_BN * torch.arange(attention_BN.shape[1], device=attention_BN.device)).argmax(1)
        return scores_BN.gather(1, last_B.unsqueeze(1)).squeeze(1)
