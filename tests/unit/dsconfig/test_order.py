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


def test_tf32_is_told_as_the_job_says(planned, gpus):
    told = [stage_order(*planned(machine=gpus, precision="fp32", tf32=said), "sft").tf32 for said in (True, False)]
    assert told == [True, False]


def test_the_degrees_are_the_plans_and_the_balance_is_what_was_asked(planned, gpus):
    data = {"source": "python-docs", "max_tokens": 96}
    stages = [{"kind": "pretrain", "data": data}, {"kind": "sft", "data": data, "parallel": {"sequence": 4}}]
    job, plan = planned(machine=gpus, parallel={"tensor": 2, "pipeline": 2, "balance": "time"}, stages=stages)
    pretrain, sft = (stage_order(job, plan, stage.name) for stage in plan.stages)
    assert (pretrain.world, pretrain.dp, pretrain.tp, pretrain.pp, pretrain.sp) == (8, 2, 2, 2, 1)
    assert (sft.world, sft.dp, sft.tp, sft.pp, sft.sp) == (8, 2, 1, 1, 4)
    assert (pretrain.balance, sft.balance) == ("time", "parameters")
