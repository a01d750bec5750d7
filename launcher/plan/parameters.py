"""ModelShape -> exact parameter counts: the causal model, the reward model, one token's path, LoRA adapters, 4-bit weights.

DERIVE, pure arithmetic. tests/stages/test_parameter_counts.py compares with the models that transformers builds.
"""

from __future__ import annotations

from functools import lru_cache

from launcher.plan.families.blueprint import num_elements
from launcher.plan.shape import Linear, ModelShape, block_linears
from launcher.spec.model import Lora


def _linear_parameters(linear: Linear, tp: int) -> int:
    """Row matrices keep their bias whole: it is added once, to the sum."""
    bias = 0 if not linear.bias else linear.outputs if linear.row else -(-linear.outputs // tp)
    return -(-linear.num_weights // tp) + bias


def norm_parameters(shape: ModelShape, width: int | None = None) -> int:
    """Parameters of one norm; `width` where it is not the model's. Of a blueprint the last one, as it is."""
    if shape.blueprint is not None:
        return num_elements(shape.blueprint.behind)
    return (width or shape.hidden) * (2 if shape.layer_norm else 1)


@lru_cache(maxsize=256)
def block_sizes(shape: ModelShape, *, tp: int = 1) -> tuple[int, ...]:
    """Parameters of every block, in order, on the fullest of `tp` ranks. They differ where only some blocks have experts."""
    kinds = {shape.has_experts(block): block for block in range(shape.layers)}  # one block of each kind
    sizes = {experts: _block_size(shape, block, tp) for experts, block in kinds.items()}
    return tuple(sizes[shape.has_experts(block)] for block in range(shape.layers))


def block_parameters(shape: ModelShape, *, tp: int = 1) -> int:
    """Parameters of the largest transformer block on the fullest of `tp` ranks: matrices are split, norms are not."""
    return max(block_sizes(shape, tp=tp))


def _block_size(shape: ModelShape, block: int, tp: int) -> int:
    if shape.blueprint is not None:
        assert tp == 1  # E223
        return num_elements(shape.blueprint.block)
    matrices = sum(_linear_parameters(linear, tp) for linear in block_linears(shape, block))
    of_heads = 2 * norm_parameters(shape, shape.head_dim) if shape.query_key_norm else 0
    experts = shape.experts * _expert_parameters(shape, tp=tp) + _router_parameters(shape) if shape.has_experts(block) else 0
    return matrices + experts + shape.norms_per_block * norm_parameters(shape) + of_heads


def _expert_parameters(shape: ModelShape, *, tp: int = 1) -> int:
    """One expert: three matrices without a bias; every tensor rank has its columns of all experts."""
    return 3 * -(-shape.hidden * shape.expert_ffn // tp)


def _router_parameters(shape: ModelShape) -> int:
    """Whole on every tensor rank: it chooses the experts of a token."""
    return shape.experts * shape.hidden


def vocabulary_parameters(shape: ModelShape, *, tp: int = 1) -> int:
    """One matrix of tokens x width, split by tokens over `tp` ranks."""
    return -(-shape.vocab // tp) * shape.hidden


def position_parameters(shape: ModelShape) -> int:
    """GPT-2's and OPT's learned positions; of a blueprint all that stands before the blocks but the embedding."""
    if shape.blueprint is not None:
        return num_elements(shape.blueprint.before) - vocabulary_parameters(shape)
    return shape.learned_positions * shape.hidden


def head_bias_parameters(shape: ModelShape, *, tp: int = 1) -> int:
    """Phi's language head has a bias, tied or not."""
    return -(-shape.vocab // tp) if shape.head_bias else 0


def body_parameters(shape: ModelShape) -> int:
    """Everything below the head: embeddings, blocks, the last norm."""
    embeddings = vocabulary_parameters(shape) + position_parameters(shape)
    return embeddings + sum(block_sizes(shape)) + norm_parameters(shape)


def causal_parameters(shape: ModelShape) -> int:
    """Parameters of the causal language model; a tied head is counted once."""
    return body_parameters(shape) + (0 if shape.tied else vocabulary_parameters(shape)) + head_bias_parameters(shape)


def active_parameters(shape: ModelShape) -> int:
    """Parameters of the causal model but the experts that a token does not pass: 3.3 B of Qwen3-30B-A3B. Embeddings are in."""
    idle = shape.experts - shape.experts_per_token
    return causal_parameters(shape) - (shape.layers - shape.dense_layers) * idle * _expert_parameters(shape)


def reward_parameters(shape: ModelShape) -> int:
    """Parameters of the sequence classifier with one score: the head is one row without a bias."""
    return body_parameters(shape) + shape.hidden


def adapted_linears(shape: ModelShape, adapter: Lora) -> tuple[Linear, ...]:
    """The matrices of one block that get an adapter: all of them, or those with a named module.

    Not of models with experts (E222): peft 0.21 gives the experts of mixtral and qwen3_moe matrices too, and of qwen2_moe not.
    """
    assert not shape.experts
    if adapter.targets == "all-linear":
        return block_linears(shape)
    wanted = {target.rsplit(".", 1)[-1] for target in adapter.targets}
    return tuple(linear for linear in block_linears(shape) if linear.name in wanted)


def lora_parameters(shape: ModelShape, adapter: Lora, *, layers: int | None = None, tp: int = 1) -> int:
    """Sum of r x (inputs + outputs) over the adapted matrices of all blocks; of `tp` ranks each has its side that is split."""
    linears = adapted_linears(shape, adapter)
    sides = sum(
        -(-linear.inputs // tp) + linear.outputs if linear.row else linear.inputs + -(-linear.outputs // tp)
        for linear in linears
    )
    return (shape.layers if layers is None else layers) * adapter.rank * sides


def quantized_weights(shape: ModelShape) -> int:
    """Weights that nf4 packs: the matrices of all blocks, not their biases, embeddings, norms or the head."""
    assert not shape.experts  # E222: it comes with an adapter
    return shape.layers * sum(linear.num_weights for linear in block_linears(shape))
