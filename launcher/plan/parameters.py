"""ModelShape -> exact parameter counts: the causal model, the reward model, LoRA adapters, 4-bit weights.

DERIVE, pure arithmetic. tests/stages/test_parameter_counts.py compares with the models that transformers builds.
"""

from __future__ import annotations

from launcher.plan.shape import Linear, ModelShape, block_linears
from launcher.spec.model import Lora


def _linear_parameters(linear: Linear) -> int:
    return linear.num_weights + (linear.outputs if linear.bias else 0)


def _norm_parameters(shape: ModelShape) -> int:
    return shape.hidden * (2 if shape.layer_norm else 1)


def block_parameters(shape: ModelShape) -> int:
    """Parameters of one transformer block: matrices, biases, two norms (Qwen3: and the query and key norms)."""
    matrices = sum(_linear_parameters(linear) for linear in block_linears(shape))
    return matrices + 2 * _norm_parameters(shape) + (2 * shape.head_dim if shape.query_key_norm else 0)


def embedding_parameters(shape: ModelShape) -> int:
    """Token embedding, and GPT-2's learned positions."""
    return shape.hidden * (shape.vocab + (shape.positions if shape.learned_positions else 0))


def body_parameters(shape: ModelShape) -> int:
    """Everything below the head: embeddings, blocks, the last norm."""
    return embedding_parameters(shape) + shape.layers * block_parameters(shape) + _norm_parameters(shape)


def causal_parameters(shape: ModelShape) -> int:
    """Parameters of the causal language model; a tied head is counted once."""
    return body_parameters(shape) + (0 if shape.tied else shape.vocab * shape.hidden)


def reward_parameters(shape: ModelShape) -> int:
    """Parameters of the sequence classifier with one score: the head is one row without a bias."""
    return body_parameters(shape) + shape.hidden


def adapted_linears(shape: ModelShape, adapter: Lora) -> tuple[Linear, ...]:
    """The matrices of one block that get an adapter: all of them, or those with a named module."""
    if adapter.targets == "all-linear":
        return block_linears(shape)
    wanted = {target.rsplit(".", 1)[-1] for target in adapter.targets}
    return tuple(linear for linear in block_linears(shape) if linear.name in wanted)


def lora_parameters(shape: ModelShape, adapter: Lora) -> int:
    """Sum of r x (inputs + outputs) over the adapted matrices of all blocks."""
    return shape.layers * sum(adapter.rank * (linear.inputs + linear.outputs) for linear in adapted_linears(shape, adapter))


def quantized_weights(shape: ModelShape) -> int:
    """Weights that nf4 packs: the matrices of all blocks, not their biases, embeddings, norms or the head."""
    return shape.layers * sum(linear.num_weights for linear in block_linears(shape))
