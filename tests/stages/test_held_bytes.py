"""Bytes of parameters, gradients and optimizer states: planned = held by the processes of real runs, to the byte.

Nothing is allowed for padding: DeepSpeed fills flat buffers up to a multiple of twice the ranks and ZeRO 3 each shard, and the
plan does the same. No width here is a multiple of the ranks, so that both would show.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.plan.activations import loss_parts
from launcher.plan.share import shares_of
from launcher.plan.states import offloaded_bytes, state_parts, states_at_loss, states_at_step, step_parts, uses_bf16_optimizer
from launcher.spec.model import NewModel
from tests.stages.harness import run_ranks
from tests.stages.held import Case, Held, Model, make_case, train_and_count, write_models

pytestmark = pytest.mark.ranks

OTHER_BYTES = 4_000  # token ids and losses: no state is so small


def model(family: str, *, tied: bool, layers: int = 3, hidden: int = 24, kv_heads: int | None = None) -> Model:
    new = NewModel(family=family, layers=layers, hidden=hidden, heads=4, kv_heads=kv_heads, ffn=46, positions=33, tied=tied)
    return Model(new=new, vocab=66)


MODELS = {
    "llama": model("llama", tied=False, kv_heads=2),
    "llama tied": model("llama", tied=True, layers=5),
    "qwen2": model("qwen2", tied=True, kv_heads=2),
    "gpt2": model("gpt2", tied=True),
    **{name: model(name, tied=False) for name in ("mistral", "qwen3", "gemma", "phi3", "gpt_neox", "opt")},
    "phi": model("phi", tied=False, hidden=48),  # half of a head turns: that must be an even number
}
LORA = {"rank": 3}
LLAMA, TIED = Case(model="llama"), Case(model="llama tied")
ADAPTED = Case(model="llama", kind="sft", adapter=LORA, tokens=32)
REWARD = Case(model="llama", kind="reward", tokens=32)
CASES = [
    *(replace(LLAMA, dp=2, zero=zero) for zero in (0, 1, 2, 3)),
    *(replace(LLAMA, dp=2, zero=zero, precision="bf16", accum=accum) for zero in (1, 2, 3) for accum in (1, 2)),
    *(replace(LLAMA, tp=2, zero=zero) for zero in (0, 1, 3)),
    *(replace(TIED, dp=2, tp=2, zero=zero, precision="bf16") for zero in (2, 3)),
    *(replace(LLAMA, pp=2, zero=1, accum=2, precision=precision) for precision in ("fp32", "bf16")),
    replace(TIED, pp=4, zero=1, accum=4, precision="bf16"),
    replace(TIED, pp=2, dp=2, zero=1, accum=2),
    *(replace(LLAMA, sp=2, zero=zero, precision="bf16") for zero in (1, 2, 3)),
    *(replace(ADAPTED, dp=2, zero=zero, precision="bf16") for zero in (2, 3)),
    replace(REWARD, dp=2, zero=2, precision="bf16"),
    *(replace(REWARD, dp=2, zero=3, precision="bf16", adapter=adapter) for adapter in (None, LORA)),
    *(Case(model="gpt2", dp=2, zero=zero, precision="bf16") for zero in (2, 3)),
    Case(model="qwen2", dp=2, zero=2, precision="bf16"),
    *(replace(LLAMA, dp=2, zero=zero, precision="bf16", accum=2, offload="cpu") for zero in (1, 2, 3)),
    replace(LLAMA, dp=2, pp=2, zero=1, precision="bf16", accum=2, offload="cpu"),
]
MORE = [
    *(replace(LLAMA, dp=2, zero=zero, precision="bf16", offload="cpu") for zero in (1, 2, 3)),
    *(replace(LLAMA, dp=2, zero=zero, precision="fp32", accum=accum, offload="cpu") for zero in (1, 2, 3) for accum in (1, 2)),
    *(replace(TIED, zero=zero, precision="bf16", accum=2, offload="cpu") for zero in (1, 2, 3)),
    *(replace(LLAMA, dp=3, zero=zero, accum=accum) for zero in (1, 2, 3) for accum in (1, 2)),
    *(replace(LLAMA, dp=2, zero=zero, accum=2) for zero in (0, 1, 2, 3)),
    *(replace(LLAMA, dp=2, tp=2, zero=zero, precision="bf16", accum=2) for zero in (1, 2, 3)),
    *(replace(TIED, tp=2, zero=zero) for zero in (0, 1, 3)),
    *(replace(TIED, pp=pp, zero=1, accum=2, precision=precision) for pp in (2, 4) for precision in ("fp32", "bf16")),
    replace(LLAMA, pp=2, zero=1, precision="bf16"),
    replace(LLAMA, pp=2, tp=2, zero=1, accum=2),
    *(replace(LLAMA, sp=2, zero=zero, precision=precision) for zero in (1, 2, 3) for precision in ("fp32",)),
    replace(LLAMA, sp=2, dp=2, zero=2, precision="bf16", accum=2),
    *(replace(ADAPTED, dp=2, zero=zero) for zero in (0, 1)),
    *(replace(ADAPTED, tp=2, zero=zero, precision="bf16") for zero in (1, 3)),
    replace(REWARD, dp=2, zero=1, adapter=LORA),
    replace(REWARD, pp=2, zero=1, accum=2),
    *(Case(model="gpt2", tp=2, zero=zero) for zero in (1, 3)),
    Case(model="gpt2", pp=2, zero=1, accum=2, precision="bf16"),
    *(
        Case(model=name, dp=2, zero=zero, precision="bf16")
        for name in ("qwen2", "mistral", "qwen3", "gemma", "phi", "phi3", "gpt_neox", "opt")
        for zero in (1, 2, 3)
    ),
]


@pytest.fixture(scope="module")
def models(world):
    run_ranks(write_models, world / "models", MODELS, world=1)
    return world


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.matrix) for case in MORE)], ids=lambda case: case.text()
)
def test_ranks_hold_what_is_planned(models, case):
    shape, layout = MODELS[case.model].shape, case.layout(cuda=True)  # what is allocated, filled or not
    load = case.load(shape)
    held = run_ranks(train_and_count, make_case(models, case, shape), case.kind, world=case.ranks)

    for share in shares_of(shape, case.kind, case.lora, tp=case.tp, pp=case.pp):
        ranks = held[share.stage * case.ranks // case.pp :][: case.ranks // case.pp]
        plan, step = state_parts(load, layout, share), states_at_step(load, layout, share)
        planned = {
            "parameters": plan["parameters"] + plan.get("persistent_parameters", 0),
            "gradients": max(one["gradients"] + one.get("gradient_edges", 0) for one in (plan, step)),
            "gradients at the step": step["gradients"] + step.get("gradient_edges", 0),
            "optimizer": plan["optimizer"],
            "buckets": step.get("buckets", 0),
            "offload_buffer": plan.get("offload_buffer", 0),
            "host": offloaded_bytes(load, layout, share),
        }
        assert planned == fullest(ranks)
        if uses_bf16_optimizer(layout):
            assert {one.wrapper for one in ranks} == {"BF16_Optimizer"}
            in_16_bit = step_parts(load, layout, share)["gradient_copy"]
            assert in_16_bit == max(one.grads_in_16_bit for one in ranks)
            assert in_16_bit == states_at_loss(load, layout, share)["gradient_copy"]
        buffers = loss_parts(load, layout, share, block=0.0).get("pipeline_buffers", 0)
        assert max(one.other for one in ranks) < OTHER_BYTES + buffers


def fullest(ranks: list[Held]) -> dict[str, int]:
    return {
        "parameters": max(one.parameters for one in ranks),
        "gradients": max(one.gradients for one in ranks),
        "gradients at the step": max(one.own_gradients - one.grads_in_16_bit for one in ranks),
        "optimizer": max(one.optimizer for one in ranks),
        "buckets": max(one.buckets for one in ranks),
        "offload_buffer": max(one.offload_buffer for one in ranks),
        "host": max(one.host for one in ranks),
    }
