"""What each tensor rank takes of the weights of every family. Pipeline stages: tests/unit/spec/test_balance.py."""

from __future__ import annotations

import pytest
import torch
from accelerate import init_empty_weights
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from launcher.train.families import FAMILIES
from launcher.train.mesh import Mesh
from launcher.train.sharding import Sharder, make_sharder, share

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
OTHERS = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 8},
    "gpt_neox": {name: size for name, size in SIZES.items() if name != "num_key_value_heads"},
    "opt": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "word_embed_proj_dim": 16},
    "gemma": {**SIZES, "head_dim": 4},
    "qwen3": {**SIZES, "head_dim": 4},
}
TP, VOCAB = 2, 13


def sharders(family: str) -> tuple[torch.nn.Module, list[Sharder]]:
    """A model of the family on the meta device, and what each of two tensor ranks takes of it."""
    config = AutoConfig.for_model(family, vocab_size=VOCAB, pad_token_id=0, **OTHERS.get(family, SIZES))
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model, [make_sharder(model, mesh(rank)) for rank in range(TP)]


def mesh(rank: int) -> Mesh:
    groups = {"tp_group": None, "sp_group": None, "zero_group": None, "mpu": None, "device": torch.device("cpu")}
    return Mesh(dp=1, tp=TP, pp=1, sp=1, dp_rank=0, tp_rank=rank, pp_rank=0, sp_rank=0, **groups)


def cuts_of(family: str) -> dict[str, tuple[tuple[int, ...], list]]:
    """Name of each weight -> its shape and the cut of each rank."""
    model, both = sharders(family)
    owners = {f"{name}.{kind}": module for name, module in model.named_modules() for kind in module._parameters}
    return {
        name: (
            tuple(weight.shape),
            [one.cut(name, tuple(weight.shape), transposed=isinstance(owners[name], Conv1D)) for one in both],
        )
        for name, weight in model.named_parameters()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ranks_hold_each_weight_once_together_or_whole_each(family):
    for name, (shape, cuts) in cuts_of(family).items():
        if cuts[0] is None:
            assert cuts == [None] * TP, name
            continue
        covered = sorted(place for cut in cuts for start, stop in cut.ranges for place in range(start, stop))
        assert covered == list(range(shape[cuts[0].dim])), name
        assert cuts[0].dim == cuts[1].dim


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_a_block_is_cut_and_no_norm_is(family):
    """A matrix that the table forgot would be whole on each rank: twice the memory, twice the work, the right numbers."""
    for name, (shape, cuts) in cuts_of(family).items():
        in_block = any(character.isdigit() for character in name)
        if in_block and len(shape) == 2:
            assert cuts[0] is not None, name
        if "norm" in name or ".ln_" in name:
            assert cuts[0] is None, name


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_tied_embedding_are_split_by_tokens(family):
    model, _ = sharders(family)
    cuts = cuts_of(family)
    [name] = [name for name, weight in model.named_parameters() if weight is model.get_output_embeddings().weight]

    assert [cut.ranges for cut in cuts[name][1]] == [((0, 6),), ((6, 13),)]


def test_a_fused_matrix_gives_each_rank_its_heads_of_queries_keys_and_values():
    """Phi-3: 4 query heads and 2 key/value heads of width 4 lie behind each other, then gate and up of 24 each."""
    cuts = cuts_of("phi3")

    assert [cut.ranges for cut in cuts["model.layers.0.self_attn.qkv_proj.weight"][1]] == [
        ((0, 8), (16, 20), (24, 28)),
        ((8, 16), (20, 24), (28, 32)),
    ]
    assert cuts["model.layers.0.mlp.gate_up_proj.weight"][1][1].ranges == ((12, 24), (36, 48))


def test_gpt2_stores_its_matrices_the_other_way_round():
    cuts = cuts_of("gpt2")

    assert cuts["transformer.h.0.attn.c_attn.weight"][1][0].dim == 1
    assert cuts["transformer.h.0.attn.c_attn.weight"][1][0].ranges == ((0, 8), (16, 24), (32, 40))
    assert cuts["transformer.h.0.attn.c_attn.bias"][1][0].ranges == ((0, 8), (16, 24), (32, 40))
    assert (cuts["transformer.h.0.attn.c_proj.weight"][1][1].dim, cuts["transformer.h.0.attn.c_proj.bias"][1][1]) == (0, None)


def test_of_loras_two_matrices_the_one_beside_the_cut_is_cut():
    _, (first, _) = sharders("llama")
    column, row = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"

    assert first.cut(f"{column}.lora_A.default.weight", (2, 16), transposed=False) is None
    assert first.cut(f"{column}.lora_B.default.weight", (24, 2), transposed=False).ranges == ((0, 12),)
    assert first.cut(f"{column}.base_layer.weight", (24, 16), transposed=False).ranges == ((0, 12),)
    assert (first.cut(f"{row}.lora_A.default.weight", (2, 24), transposed=False).dim) == 1
    assert first.cut(f"{row}.lora_B.default.weight", (16, 2), transposed=False) is None


@given(st.integers(0, 9), st.integers(0, 50), st.integers(1, 8))
def test_shares_follow_each_other_and_differ_by_one_at_most(start, size, parts):
    shares = [share(start, size, parts, index) for index in range(parts)]
    sizes = [stop - begin for begin, stop in shares]

    assert [begin for begin, _ in shares] == [start, *(stop for _, stop in shares[:-1])]
    assert (sum(sizes), max(sizes) - min(sizes) <= 1) == (size, True)
