"""ModelShape: the widths and counts of a model that decide its parameters and its memory. DERIVE, nouns only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from launcher.plan.families.blueprint import Blueprint, vectors_of
from launcher.spec.model import Family
from launcher.spec.new_model import ARCHITECTURES

PlannedFamily = Literal["falcon", "mixtral", "qwen2_moe", "qwen3_moe"]
AnyFamily = Family | PlannedFamily

FAMILIES: tuple[Family, ...] = tuple(ARCHITECTURES)  # can be trained
_NEAREST_TRAINED: dict[str, str] = {
    "falcon": "gpt_neox",
    "mixtral": "mistral",
    "qwen2_moe": "qwen2",
    "qwen3_moe": "qwen3",
}
PLANNED_ONLY: tuple[AnyFamily, ...] = get_args(PlannedFamily)  # counted and planned for, not trained yet
PLANNED_FAMILIES: tuple[AnyFamily, ...] = FAMILIES + PLANNED_ONLY


def nearest_trained(family: str) -> str:
    """Itself, or the family most like it that can be trained."""
    return _NEAREST_TRAINED.get(family, family)


_LAYER_NORM = ("phi", "gpt2", "gpt_neox", "opt", "falcon")  # and an MLP of two matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What has to be known of a causal language model to plan it."""

    family: str  # model_type of its config
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int  # columns of the MLP that one token passes, in the block where they are most
    positions: int
    tied: bool
    attention_bias: bool  # on q, k, v
    out_bias: bool  # on the attention's output matrix
    mlp_bias: bool
    norms_per_block: int = 2  # 1: attention and MLP read the same normed input
    query_key_norm: bool = False  # a norm on each head's query and key
    window: int | None = None  # tokens that a layer with a sliding window looks back on, its own included; None: no such layer
    experts: int = 0  # of each block that has any; 0: no block has
    experts_per_token: int = 0
    expert_ffn: int = 0  # columns of one expert
    shared_ffn: int = 0  # columns of the expert that every token passes beside its own; 0: there is none
    dense_ffn: int = 0  # columns of the MLP of a block without experts, in a model that has some with
    dense_blocks: tuple[int, ...] = ()  # numbers of those blocks, from 0
    blueprint: Blueprint | None = None  # of a family that is in no table: what its numbers are counted from

    @property
    def trainable(self) -> bool:
        """Whether the ranks can train the family; the others are for planning only."""
        return self.family in FAMILIES if self.blueprint is None else self.blueprint.untrained is None

    @property
    def dense_layers(self) -> int:
        """Blocks without experts."""
        return len(self.dense_blocks) if self.experts else self.layers

    def has_experts(self, block: int) -> bool:
        return self.experts > 0 and block not in self.dense_blocks

    @property
    def gated(self) -> bool:
        """SwiGLU or its like: a third matrix in the MLP."""
        return self.family not in _LAYER_NORM if self.blueprint is None else self.blueprint.gated

    @property
    def layer_norm(self) -> bool:
        """LayerNorm with a bias instead of RMSNorm."""
        return self.family in _LAYER_NORM if self.blueprint is None else self.blueprint.layer_norm

    @property
    def learned_positions(self) -> int:
        """Rows of the table of positions, 0 where they are rotary or ALiBi. OPT's begins with two rows that nothing uses."""
        if self.blueprint is not None:
            return self.blueprint.learned_positions
        return {"gpt2": self.positions, "opt": self.positions + 2}.get(self.family, 0)

    @property
    def head_bias(self) -> bool:
        return self.family == "phi" if self.blueprint is None else bool(vectors_of(self.blueprint.head))
