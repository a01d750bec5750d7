"""Load: what a stage puts on a rank whatever the layout. DERIVE, nouns only."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.parameters import causal_parameters, lora_parameters, reward_parameters
from launcher.plan.shape import ModelShape
from launcher.spec.model import Lora


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a stage puts on a rank whatever the layout: the models in memory and the rows of one pass."""

    shape: ModelShape
    kind: str
    adapter: Lora | None
    quantized: bool
    eager: bool  # eager attention keeps the heads x tokens x tokens matrices
    row_tokens: int  # longest sequence; ppo: prompt and answer
    answer_tokens: int  # of it generated (ppo), else 0
    tf32: bool = False  # fp32 products in TF32

    @property
    def sequences_per_row(self) -> int:
        """A preference pair is two sequences in one pass."""
        return 2 if self.kind in ("reward", "dpo") else 1

    @property
    def num_params(self) -> int:
        """Parameters of the model that the stage hands on."""
        return reward_parameters(self.shape) if self.kind == "reward" else causal_parameters(self.shape)

    @property
    def num_adapter(self) -> int:
        """Trained beside a frozen base: LoRA matrices, and the new head of a reward model."""
        if self.adapter is None:
            return 0
        return lora_parameters(self.shape, self.adapter) + (self.shape.hidden if self.kind == "reward" else 0)

    @property
    def num_trainable(self) -> int:
        """Of the model that is handed on: all of it, or the adapter."""
        return self.num_adapter if self.adapter else self.num_params

    @property
    def num_critic(self) -> int:
        """ppo: the critic's parameters without adapters."""
        return reward_parameters(self.shape) if self.kind == "ppo" else 0

    @property
    def num_critic_trained(self) -> int:
        """ppo: all of the critic, or its own adapter and its head."""
        if self.kind != "ppo" or self.adapter is None:
            return self.num_critic
        return self.num_adapter + self.shape.hidden
