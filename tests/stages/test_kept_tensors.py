"""What autograd keeps of one block of each family, on a CPU: planned = counted from its saved tensors, to the byte."""

from __future__ import annotations

import itertools

import pytest

from launcher.plan.kept import kept_of_block
from launcher.plan.shape import ModelShape, shape_of_new
from launcher.spec.model import Lora, NewModel
from launcher.spec.new_model import new_model_config
from tests.stages.harness import run_ranks

pytestmark = pytest.mark.ranks

TOKENS, ROWS = 32, 2
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt2", "gpt_neox", "opt")
GROUPED = ("llama", "qwen2", "qwen3", "gemma", "phi", "phi3")
ADAPTERS = (Lora(rank=4), Lora(rank=4, dropout=0.1))
CASES = [
    *((family, None, precision, "sdpa", None) for family in FAMILIES for precision in ("fp32", "bf16")),
    *((family, None, "bf16", "eager", None) for family in FAMILIES),
    *(("llama", kv_heads, "fp32", "eager", None) for kv_heads in (None, 2)),
    *((family, 2, "bf16", kernel, None) for family in GROUPED for kernel in ("sdpa", "eager")),
    *((family, None, "bf16", "sdpa", adapter) for family in FAMILIES for adapter in ADAPTERS),
    *(("llama", 2, "fp32", "sdpa", adapter) for adapter in ADAPTERS),
    *((family, None, "bf16", "eager", ADAPTERS[1]) for family in FAMILIES),
]


def model(family: str, kv_heads: int | None, layers: int) -> NewModel:
    return NewModel(family=family, layers=layers, hidden=64, heads=4, kv_heads=kv_heads, ffn=176, positions=64)


def saved_bytes() -> list[int]:
    """For each case bytes of a third block's saved tensors, weights left out. Runs in a forked rank."""
    return [_saved(*case, layers=3) - _saved(*case, layers=2) for case in CASES]


def _saved(family: str, kv_heads: int | None, precision: str, kernel: str, adapter: Lora | None, *, layers: int) -> int:
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from launcher.train.adapters import lora_config

    fields = new_model_config(model(family, kv_heads, layers), 128)
    fields.pop("dtype")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=dtype, attn_implementation=kernel)
    base = getattr(made, made.base_model_prefix)
    if adapter is not None:
        get_peft_model(made, lora_config(adapter, "causal"), autocast_adapter_dtype=False)
    made.train()
    sizes: dict[int, int] = {}
    kept = []  # so that no address comes twice

    def keep(tensor):
        kept.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept.append(base(input_ids=torch.zeros(ROWS, TOKENS, dtype=torch.long), use_cache=False).last_hidden_state)
    for own in (*made.parameters(), *made.buffers()):
        sizes.pop(own.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


@pytest.fixture(scope="module")
def saved():
    [counted] = run_ranks(saved_bytes, world=1)
    return dict(zip(CASES, counted, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(str(part) for part in case if part is not None)[:60])
def test_a_block_keeps_what_is_planned(saved, case):
    family, kv_heads, precision, kernel, adapter = case
    shape: ModelShape = shape_of_new(model(family, kv_heads, 2), 128)
    planned = kept_of_block(shape, precision, row_tokens=TOKENS, eager=kernel == "eager", adapter=adapter)
    ones = 2 * 4 * shape.hidden if family == "gemma" else 0  # Gemma's norms keep 1 + weight, however many tokens there are
    assert saved[case] == ROWS * TOKENS * planned + ones


def test_every_family_that_can_be_trained_is_here():
    assert set(FAMILIES) == set(itertools.chain(*[NewModel.model_fields["family"].annotation.__args__]))
