"""(job, plan, stage) -> StageOrder: who starts from what."""

from __future__ import annotations

from launcher.dsconfig.order import stage_order


def test_the_first_stage_starts_from_the_base_and_the_others_from_their_parent(planned):
    job, plan = planned()
    orders = {stage.name: stage_order(job, plan, stage.name) for stage in plan.stages}
    assert {name: order.model for name, order in orders.items()} == {
        "pretrain": "base/model",
        "sft": "stages/pretrain/artifact",
        "judge": "stages/sft/artifact",
        "ppo": "stages/sft/artifact",
    }
    assert {order.tokenizer for order in orders.values()} == {"base/tokenizer"}


def test_ppo_is_handed_the_reward_model_that_it_names_and_only_ppo(planned):
    job, plan = planned()
    rewards = [stage_order(job, plan, stage.name).reward_model for stage in plan.stages]
    assert rewards == [None, None, None, "stages/judge/artifact"]


def test_a_reward_stage_hands_on_a_reward_model(planned):
    job, plan = planned()
    assert [stage_order(job, plan, stage.name).model_kind for stage in plan.stages] == ["causal", "causal", "reward", "causal"]


def test_the_numbers_are_the_plans(planned, gpus):
    job, plan = planned(machine=gpus, parallel={"zero": 3})
    order, stage = stage_order(job, plan, "sft"), plan.stage("sft")
    assert (order.world, order.device, order.zero, order.precision) == (8, "cuda", 3, "bf16")
    assert (order.micro_batch, order.grad_accum, order.max_tokens) == (stage.micro_batch, stage.grad_accum, 96)
