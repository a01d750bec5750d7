"""(load, layout, share) -> bytes that live from the forward to the backward pass: activations, logits, caches. DERIVE, pure.

What a block keeps is counted from the operations of the software that runs it: on a GPU a Footprint, checked on published
measurements, on a CPU what autograd was seen to save (plan/kept.py). The fullest moment can be the loss, a block that is
recomputed under the others' inputs, or the first gradients behind the loss. tests/stages/test_planned_memory.py runs them.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.kept import kept_of_block, kept_of_norm
from launcher.plan.layout import BYTES, Layout
from launcher.plan.load import Load
from launcher.plan.plan import Precision
from launcher.plan.shape import ModelShape
from launcher.plan.share import Share

TILE_TOKENS = 4096  # tokens whose logits exist at once (train/scoring.py)
TILE_LOGIT_BYTES = 12  # fp32: log-softmax and its gradient, and the logits or their gradient
PPO_LOGIT_BYTES: dict[Precision, int] = {"fp32": 16, "bf16": 14, "fp16": 14}  # logits, an fp32 copy, log-softmax, gradient
SAMPLED_MICRO_BATCHES = 4  # ppo samples this many micro-batches together (train/ppo_steps.py)
RECOMPUTED_BLOCKS = 2.0  # a recomputed block's outputs and their gradients live beside its activations; fitted: 1.99
CPU_RECOMPUTED_BLOCKS = 1.2  # the same, as tensors of this program: 1.18-1.21, Llama and GPT-2, fp32 and bf16
FIRST_GRADIENTS = 0.2  # of a block: gradients inside the last block before it gives back what it kept
PIPELINE_COPIES = (
    2  # DeepSpeed's pipeline keeps a stage's input and its gradient for each micro-batch under way; and what comes
)
PIPELINE_BUFFERS = 2  # at least (runtime/pipe/schedule.py: num_pipe_buffers)
ADAPTER_KEEPS = 1.3  # LoRA keeps the dropped-out inputs of its matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a block keeps for its backward pass, in elements for each token, by the width they belong to."""

    rms_norm_bytes: float  # fp32 copies, whatever the precision
    rms_norm: float  # by elements of the residual stream
    layer_norm: float
    outside: float  # beside the norms, whole on every tensor rank
    heads: float  # by columns of queries, keys and values
    out: float  # by columns of the attention's output
    gated: float  # by columns of the MLP
    plain: float
    scores: float  # bytes for each score of eager attention beside two elements


# transformers in eager mode. RMSNorm keeps an fp32 copy and the normed fp32 values (8 bytes), their cast and its product with
# the weight; LayerNorm input and output. Queries and keys are kept before and after RoPE.
EAGER = Footprint(rms_norm_bytes=8, rms_norm=2, layer_norm=2, outside=2, heads=2, out=1, gated=4, plain=3, scores=4)


def kept_by_block(
    shape: ModelShape, footprint: Footprint, precision: Precision, *, row_tokens: int, eager: bool, tp: int = 1
) -> float:
    """Bytes for each token and block: 63 x hidden for Llama-2-7B in transformers' code, 16 bit (measured: 64.3).

    Tensor parallel ranks share what lies inside attention and MLP; norms and the residual stream are whole on each.
    """
    size, hidden = BYTES[precision], shape.hidden
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norm = size * footprint.layer_norm if shape.layer_norm else footprint.rms_norm_bytes + size * footprint.rms_norm
    attention = size * (footprint.heads * (query + 2 * key_value) + footprint.out * query) + 4 * shape.heads  # log-sum-exp
    mlp = size * shape.ffn * (footprint.gated if shape.gated else footprint.plain)
    scores = (2 * size + footprint.scores) * shape.heads * row_tokens if eager else 0
    return hidden * (shape.norms_per_block * norm + size * footprint.outside) + (attention + mlp + scores) / tp


def loss_parts(load: Load, layout: Layout, share: Share, *, block: float) -> dict[str, float]:
    """The loss: logits beside what all blocks keep. Without logits, or with few, a block that is recomputed may be more.

    `block`: bytes that one block keeps of one micro-batch.
    """
    parts = _forward_parts(load, layout, share, block=block)
    logits = _logits_bytes(load, layout, tokens=pass_tokens(load, layout)) if share.head and load.kind != "reward" else 0.0
    recomputed = 0.0 if layout.checkpointing == "none" else _working_bytes(layout, block)
    if logits > recomputed:
        parts["logits"] = logits
    else:
        parts["activations"] += recomputed
    return parts


def head_parts(load: Load, layout: Layout, share: Share, *, block: float) -> dict[str, float]:
    """Behind the loss: logits are gone, the head has its gradient, and the last block makes its first ones."""
    parts = _forward_parts(load, layout, share, block=block)
    trained = share.head and load.kind != "reward" and load.adapter is None
    if trained:
        parts["head_gradient"] = BYTES[layout.precision] * load.shape.hidden * -(-load.shape.vocab // layout.tp)
    parts["activations"] += FIRST_GRADIENTS * block if layout.checkpointing == "none" else _working_bytes(layout, block)
    return parts


def last_block_parts(layout: Layout, *, block: float) -> dict[str, float]:
    """The end of the backward pass: what the first block kept, and the gradients inside it."""
    return {"activations": _working_bytes(layout, block)}


def kept_bytes(load: Load, layout: Layout) -> float:
    """Of one token, by one block, whatever the rows of a pass."""
    shape, how = load.shape, {"row_tokens": load.row_tokens, "tp": layout.tp}
    if not layout.cuda:
        return kept_of_block(shape, layout.precision, eager=load.eager, adapter=load.adapter, **how)
    kept = kept_by_block(shape, EAGER, layout.precision, eager=load.eager, **how)
    return kept * (ADAPTER_KEEPS if load.adapter else 1.0)


def _working_bytes(layout: Layout, block: float) -> float:
    """A block whose backward pass is under way: what it keeps, and gradients beside it."""
    return (RECOMPUTED_BLOCKS if layout.cuda else CPU_RECOMPUTED_BLOCKS) * block


def _forward_parts(load: Load, layout: Layout, share: Share, *, block: float) -> dict[str, float]:
    """All blocks and micro-batches under way. Full checkpointing keeps the blocks' inputs, `offload` on the host."""
    kept = 0.0
    if layout.checkpointing == "none":
        kept = layout.in_flight(share.stage) * share.layers * block
    elif layout.checkpointing == "full":
        kept = block_inputs_bytes(load, layout, share)
    if share.head:
        kept += pass_tokens(load, layout) * kept_of_norm(load.shape, layout.precision, frozen=load.adapter is not None)
    parts = {"activations": kept}
    if layout.pp > 1:
        buffers = max(PIPELINE_BUFFERS, layout.in_flight(share.stage))
        parts["pipeline_buffers"] = hidden_bytes(load, layout) * (PIPELINE_COPIES * buffers + 1)
    if layout.offload_parameters == "cpu":
        parts["staging"] = BYTES[layout.precision] * share.num_params / share.layers
    return parts


def pass_tokens(load: Load, layout: Layout) -> int:
    """Tokens of one micro-batch on one rank, at most."""
    return -(-layout.micro_batch * load.sequences_per_row * load.row_tokens // layout.sp)


def hidden_bytes(load: Load, layout: Layout) -> int:
    """The residual stream of one micro-batch at one place."""
    return BYTES[layout.precision] * load.shape.hidden * pass_tokens(load, layout)


def block_inputs_bytes(load: Load, layout: Layout, share: Share) -> float:
    """What checkpointing keeps: one input for each block and micro-batch under way."""
    return layout.in_flight(share.stage) * share.layers * hidden_bytes(load, layout)


def _logits_bytes(load: Load, layout: Layout, *, tokens: int) -> float:
    """Logits with their copies and gradient, of one tile of tokens; ppo has its own loss on whole rows of its answers.

    From the second tile on the gradients of the tiles before are there: of the hidden states, and of the head.
    """
    vocab, hidden, size = -(-load.shape.vocab // layout.tp), load.shape.hidden, BYTES[layout.precision]
    if load.kind == "ppo":
        return layout.micro_batch * (load.answer_tokens + 1) * vocab * PPO_LOGIT_BYTES[layout.precision]
    tiles = -(-tokens // TILE_TOKENS)
    tile = -(-tokens // tiles) * vocab * TILE_LOGIT_BYTES
    return tile + (size * hidden * (tokens + (0 if load.adapter else vocab)) if tiles > 1 else 0)


def rollout_parts(load: Load, layout: Layout) -> dict[str, float]:
    """Generation: the key/value cache of the rows sampled together and, under ZeRO-3, the actor gathered whole."""
    shape, size = load.shape, BYTES[layout.precision]
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * size * load.row_tokens
    return {
        "key_value_cache": cache * SAMPLED_MICRO_BATCHES * layout.micro_batch,
        "gathered_actor": size * load.num_params if layout.zero == 3 else 0.0,
    }
