"""(shape, precision) -> bytes that autograd keeps of one block of transformers 5 for its backward pass, on a CPU. DERIVE, pure.

Counted from the saved tensors of each family's modules; tests/stages/test_kept_tensors.py compares with autograd, to the byte.
Autograd's formulas are those of every device, the attention kernel is not: on a CPU its output lies as its queries do, so that
families whose rotary positions join two halves keep it once more, as the output matrix reads it. No run of this program on a
GPU is measured yet: there the published footprint of transformers stays (activations.EAGER), which is larger.
"""

from __future__ import annotations

from launcher.plan.families.blueprint import Blueprint
from launcher.plan.layout import BYTES
from launcher.plan.parameters import adapted_linears
from launcher.plan.plan import Precision
from launcher.plan.shape import ModelShape
from launcher.spec.model import Lora

# Elements for each column of an MLP without a gate: the product before the activation, what that keeps, and its result.
# GPT-2's tanh approximation is written out in four steps; relu and gelu are one, and relu needs only its result.
_PLAIN = {"gpt2": 5, "phi": 5, "opt": 1}
_JOINED = ("phi", "phi3", "gpt_neox")  # rotary positions on a part of each head
_ROTATED_FROM_ONE = ("phi3", "gpt_neox")  # queries and keys are copied out of the matrix whose values are used in place


def kept_of_block(
    shape: ModelShape, precision: Precision, *, row_tokens: int, eager: bool, adapter: Lora | None = None, tp: int = 1
) -> float:
    """Bytes for each token. Tensor ranks share what lies inside attention and MLP; norms are whole on each."""
    if shape.blueprint is not None:
        return _measured(shape.blueprint, precision, row_tokens=row_tokens, eager=eager, adapter=adapter)
    columns = shape.ffn * (4 if shape.gated else _PLAIN.get(shape.family, 2))
    frozen = adapter is not None
    inside = _attention(shape, precision, row_tokens=row_tokens, eager=eager, frozen=frozen) + BYTES[precision] * columns
    norms = shape.norms_per_block * kept_of_norm(shape, precision, frozen=frozen)
    if shape.family == "gpt_neox":
        norms -= BYTES[precision] * shape.hidden  # both norms read the same input
    if adapter is not None and adapter.dropout:
        norms -= shape.norms_per_block * BYTES[precision] * shape.hidden
    return norms + (inside + _adapter(shape, precision, adapter) - _unread(shape, precision, adapter, eager=eager)) / tp


def _measured(blueprint: Blueprint, precision: Precision, *, row_tokens: int, eager: bool, adapter: Lora | None) -> float:
    """As autograd was seen to keep it; of an adapter its rank's products come on top."""
    trained = "all" if adapter is None else "adapter with dropout" if adapter.dropout else "adapter"
    kept = blueprint.kept_when(BYTES[precision], "eager" if eager else "sdpa", trained)
    products = BYTES[precision] * adapter.rank * len(blueprint.linears) if adapter is not None else 0
    return kept.bytes + kept.bytes_by_row_token * row_tokens + products


def kept_of_norm(shape: ModelShape, precision: Precision, *, frozen: bool) -> float:
    """Bytes for each token of a norm of the model's width and of what the next matrix reads.

    LayerNorm keeps its input. RMSNorm keeps its input in fp32 (in fp32 the input itself), the normed values where its own
    weight is trained, and their product with the weight; Gemma multiplies in fp32.
    """
    size = BYTES[precision]
    if shape.layer_norm:
        return 2 * size * (shape.hidden + 1)  # beside them the mean and the deviation
    normed = 0 if frozen else 4 if shape.family == "gemma" else size
    return (4 + normed + size) * shape.hidden + 4


def _attention(shape: ModelShape, precision: Precision, *, row_tokens: int, eager: bool, frozen: bool) -> float:
    size, query, key_value = BYTES[precision], shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    of_heads = 0
    if shape.query_key_norm:  # LayerNorm's input, or RMSNorm's as above; rotary positions need no input
        of_heads = (size if shape.layer_norm else 4 + (0 if frozen else size)) * (query + key_value)
        of_heads += 4 * (shape.heads + shape.kv_heads)
    if eager:  # keys and values are repeated for each head; GPT-2's scores stay in 16 bit
        scores = size if shape.family == "gpt2" else 4 + size * (precision != "fp32")
        return of_heads + 4 * size * query + scores * shape.heads * row_tokens
    kept = query + 2 * key_value + query * (2 if shape.family in _JOINED else 1)
    kept += query + key_value if shape.family in _ROTATED_FROM_ONE else 0
    return of_heads + size * kept + 4 * shape.heads  # log-sum-exp


def _adapter(shape: ModelShape, precision: Precision, adapter: Lora | None) -> float:
    """LoRA keeps the products of its A matrices. With dropout it keeps a mask and what that leaves of each matrix's input, and
    nobody the input itself: frozen matrices need none. Counted for adapters on all matrices; named ones keep less.
    """
    if adapter is None:
        return 0
    size, linears = BYTES[precision], adapted_linears(shape, adapter)
    kept = size * adapter.rank * len(linears)
    return kept + (2 * size * sum(linear.inputs for linear in linears) if adapter.dropout else 0)


def _unread(shape: ModelShape, precision: Precision, adapter: Lora | None, *, eager: bool) -> float:
    """What nobody keeps under dropout: the input of the MLP's last matrix, and the attention's where it is a copy."""
    if adapter is None or not adapter.dropout:
        return 0
    copied = shape.heads * shape.head_dim if eager or shape.family in _JOINED else 0
    return BYTES[precision] * ((shape.ffn if shape.family != "opt" else 0) + copied)
