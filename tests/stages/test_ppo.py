"""PPO on real engines: what was sampled is what is scored, equal runs are equal, and each trap of facts c and f is closed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from launcher.rundir.folder import read_json
from launcher.rundir.order import read_order, write_order
from launcher.spec.job import JobSpec
from tests.stages.harness import fork_ranks, run_ranks
from tests.stages.look import curve, held_out, largest_difference, notes, refused, train, weights
from tests.stages.ppo_world import make_ppo_run, make_ppo_world
from tests.stages.runs import END, PAD

pytestmark = pytest.mark.ranks

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 16, "dropout": 0.1}}
FIGURES = ("score", "kl", "length", "finished", "entropy", "policy_loss", "value_loss", "explained_variance", "clipped")
# fp32: the figures of three iterations differ by rounding that AdamW's first, sign-like steps enlarge. Seen: 3e-5.
TOLERANCE = 2e-4
NORM_TOLERANCE = 2e-3  # relative; a gradient that is divided once too often is off by the accumulation, 2 to 8 times


@pytest.fixture(scope="module")
def ppo_world(tmp_path_factory):
    return make_ppo_world(tmp_path_factory.mktemp("ppo"))


@pytest.fixture(scope="module")
def plain(ppo_world):
    """One rank, ZeRO 1, the whole batch at once: what the others are compared with."""
    run = make_ppo_run(ppo_world, zero=1)
    train(run, "ppo")
    return run


def parts(run):
    """(job, stage, order, ranks, tokenizer, models) inside a rank."""
    from launcher.train.models import load_tokenizer
    from launcher.train.ppo_engines import make_models
    from launcher.train.ranks import meet

    job, order = JobSpec.model_validate_json(run.job_json.read_text()), read_order(run.order("ppo"))
    ranks, stage = meet(order), job.stages[0]
    tokenizer = load_tokenizer(run, order)
    return job, stage, order, ranks, tokenizer, make_models(run, job, stage, order, ranks, tokenizer)


def held_out_prompts(run):
    from datasets import load_from_disk

    return load_from_disk(str(run.path / read_json(run.stage("ppo").prepared)["held_out"]))["prompt_ids"][:]


def _sampled_and_recomputed(run, with_positions):
    import torch

    from launcher.train import rollout
    from launcher.train.ppo_losses import position_ids, token_logps
    from launcher.train.ppo_steps import roll_out

    _, stage, _, _, _, models = parts(run)
    if not with_positions:  # what happens to a model with learned positions when nobody gives them
        rollout.position_ids = lambda attention: torch.arange(attention.shape[1]).expand_as(attention)
    prompts = held_out_prompts(run)
    streams = [rollout.stream(1, "test", 0, row) for row in range(len(prompts))]
    answers = roll_out(models, prompts, streams, stage=stage, micro=2)  # in two chunks of unequal prompt widths
    width = answers.mask_BT.shape[1]
    with torch.no_grad():
        logits = models.answer_logits(models.actor, answers.ids_BN, answers.attention_BN, width)
    off = (token_logps(logits, answers.answer_BT) - answers.sampled_logp_BT) * answers.mask_BT
    assert position_ids(answers.attention_BN)[0, -1] <= 14
    return (
        off.abs().max().item(),
        sorted(set(answers.mask_BT.sum(1).tolist())),
        (answers.answer_BT == PAD)[answers.mask_BT > 0].any(),
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_of_the_training_forward_are_those_that_were_sampled(ppo_world, family, temperature):
    names = {"policy": "policy", "reward": "reward_model"} if family == "llama" else {"policy": "gpt2", "reward": "gpt2_reward"}
    run = make_ppo_run(ppo_world, stage={"temperature": temperature}, **names)
    [(off, lengths, drew_padding)] = run_ranks(_sampled_and_recomputed, run, True, world=1)
    assert off < 1e-5
    assert len(lengths) > 1  # some answers end early, or padding would not be tested
    assert not drew_padding


def test_without_position_ids_a_model_with_learned_positions_is_scored_wrongly(ppo_world):
    run = make_ppo_run(ppo_world, policy="gpt2", reward="gpt2_reward")
    [(off, _, _)] = run_ranks(_sampled_and_recomputed, run, False, world=1)
    assert off > 0.05  # so the test above can fail


def _answers_alone_and_in_company(run):
    from launcher.train.ppo_steps import roll_out
    from launcher.train.rollout import stream

    _, stage, _, _, _, models = parts(run)
    prompts = held_out_prompts(run)

    def answer(rows):
        streams = [stream(1, "test", 0, row) for row in rows]
        drawn = roll_out(models, [prompts[row] for row in rows], streams, stage=stage, micro=8)
        return [row[mask.bool()].tolist() for row, mask in zip(drawn.answer_BT, drawn.mask_BT, strict=True)]

    company = answer(range(len(prompts)))
    return company, [answer([row])[0] for row in range(len(prompts))], answer(range(len(prompts)))


def test_an_answer_depends_on_its_own_stream_and_not_on_its_neighbours(ppo_world):
    [(company, alone, again)] = run_ranks(_answers_alone_and_in_company, make_ppo_run(ppo_world), world=1)
    assert company == alone == again
    assert len({tuple(answer) for answer in company}) > 10
    assert {answer[-1] == END for answer in company} == {True, False}


def _ranks_that_stop_apart(run):
    import torch

    from launcher.train.ppo_losses import position_ids
    from launcher.train.ppo_steps import roll_out
    from launcher.train.rollout import stream

    _, stage, _, ranks, _, models = parts(run)
    lengths = []
    for turn in range(6):
        answers = roll_out(models, [[9, 12]], [stream(turn, "test", 0, ranks.rank)], stage=stage, micro=1)
        lengths.append(int(answers.mask_BT.sum()))
        with torch.no_grad():  # the hooks are back: a training forward gathers again
            models.actor(answers.ids_BN, answers.attention_BN, position_ids(answers.attention_BN))
    return lengths


def test_under_zero_3_ranks_whose_answers_end_apart_do_not_wait_for_each_other(ppo_world):
    """Gathered layer by layer, the rank that goes on sampling would wait for ever for the one that has stopped."""
    run = make_ppo_run(ppo_world, ranks=2, zero=3, micro=4, stage={"max_new_tokens": 24})
    first, second = run_ranks(_ranks_that_stop_apart, run, world=2, timeout_s=60)
    assert sum(a != b for a, b in zip(first, second, strict=True)) >= 3


def _experience(run):
    import torch

    from launcher.stages.ppo import sizes_of
    from launcher.train.ppo_steps import collect

    job, stage, order, ranks, _, models = parts(run)
    sizes = sizes_of(stage, order, ranks)
    prompts = held_out_prompts(run)
    experience = collect(models, prompts, stage=stage, sizes=sizes, seed=job.seed, iteration=0, kl_coef=0.0)
    answers = experience.answers
    lone = []
    for ids, attention in zip(answers.ids_BN, answers.attention_BN, strict=True):
        with torch.no_grad():
            lone.append(models.scorer.model(input_ids=ids[attention.bool()].unsqueeze(0)).logits[0, 0].item())
    penalised = experience.score_B - stage.unfinished_penalty * (~answers.ended_B).float()
    off = (experience.returns_BT - penalised.unsqueeze(1)).abs() * answers.mask_BT
    whole = (experience.advantages_BT * answers.mask_BT).sum() / answers.mask_BT.sum()
    return (
        off.max().item(),
        (experience.score_B - torch.tensor(lone)).abs().max().item(),
        answers.ended_B.tolist(),
        whole.item(),
    )


@pytest.mark.parametrize("families", [("policy", "reward_model"), ("gpt2", "gpt2_reward")], ids=["llama", "gpt2"])
def test_the_reward_lands_on_the_end_token_of_every_answer(ppo_world, families):
    """With gamma = lambda = 1 and no KL, every answer token's return is the answer's score: nothing is lost on padding."""
    run = make_ppo_run(ppo_world, policy=families[0], reward=families[1], stage={"lam": 1.0}, micro=8)
    [(return_off, score_off, ended, mean)] = run_ranks(_experience, run, world=1)
    assert return_off < 1e-5
    assert score_off < 1e-5  # the score in a padded batch is that of the text alone, end token included
    assert set(ended) == {True, False}
    assert abs(mean) < 1e-5


LAYOUTS = {
    "1 rank, zero 0": {"zero": 0},
    "1 rank, 1 at a time, 8 accumulated": {"zero": 1, "micro": 1, "accum": 8},
    "2 ranks, zero 2": {"ranks": 2, "zero": 2, "micro": 4},
    "2 ranks, zero 2, 4 accumulated": {"ranks": 2, "zero": 2, "micro": 1, "accum": 4},
    "2 ranks, zero 3, 2 accumulated, activations recomputed": {
        "ranks": 2, "zero": 3, "micro": 2, "accum": 2, "checkpointing": "full"
    },
}  # fmt: skip


def assert_equal_runs(run, other, *, tolerance=TOLERANCE):
    for name in FIGURES:
        assert curve(run, "ppo", name) == pytest.approx(curve(other, "ppo", name), abs=tolerance), name
    for name in ("grad_norm", "critic_grad_norm"):  # ZeRO 0 keeps none
        if curve(run, "ppo", name) and curve(other, "ppo", name):
            assert curve(run, "ppo", name) == pytest.approx(curve(other, "ppo", name), rel=NORM_TOLERANCE), name
    assert held_out(run, "ppo") == pytest.approx(held_out(other, "ppo"), abs=tolerance)
    ours, theirs = (weights(one.stage("ppo").artifact) for one in (run, other))
    assert largest_difference(ours, theirs) < tolerance


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_figures_and_weights_do_not_depend_on_ranks_zero_stage_or_accumulation(ppo_world, plain, layout):
    run = make_ppo_run(ppo_world, **layout)
    train(run, "ppo", ranks=layout.get("ranks", 1))
    assert_equal_runs(run, plain)


def test_the_policy_has_moved_from_where_it_started(ppo_world, plain):
    """Or equal runs would prove nothing."""
    start, end = weights(ppo_world / "policy"), weights(plain.stage("ppo").artifact)
    assert largest_difference(start, end) > 1e-3
    assert curve(plain, "ppo", "kl")[-1] > 0.1


def test_the_first_ratio_is_one_and_the_first_kl_is_zero(plain):
    assert curve(plain, "ppo", "ratio_first") == [0.0, 0.0, 0.0]
    assert curve(plain, "ppo", "kl")[0] == 0.0


def test_published_dropout_is_switched_off_and_said(ppo_world):
    run = make_ppo_run(ppo_world, policy="gpt2", reward="gpt2_reward", zero=1, stage={"steps": 1})
    train(run, "ppo")
    assert curve(run, "ppo", "ratio_first") == [0.0]
    assert "dropouts are set to 0" in notes(run, "ppo")


@pytest.mark.parametrize("model", [{}, LORA], ids=["full", "lora"])
def test_in_bf16_equal_weights_still_have_kl_zero(ppo_world, model):
    """A reference whose position table was rounded to bf16 with the weights would start at another KL."""
    run = make_ppo_run(ppo_world, zero=1, precision="bf16", model=model, stage={"steps": 1})
    train(run, "ppo")
    assert curve(run, "ppo", "kl") == [0.0]
    assert curve(run, "ppo", "ratio_first") == [0.0]


def test_in_fp16_a_step_that_is_skipped_to_lower_the_loss_scale_does_not_stop_the_stage(ppo_world):
    """The critic's first steps overflow at the scale that runs begin with; DeepSpeed then tells an infinite norm."""
    run = make_ppo_run(ppo_world, zero=1, precision="fp16")
    [end] = fork_ranks(_train_in_fp16, run, world=1)
    assert end.exit_code == 0, run.stage("ppo").rank_log(0).read_text()
    norms = curve(run, "ppo", "critic_grad_norm")
    assert norms[0] is None
    assert norms[-1] is not None
    assert curve(run, "ppo", "kl")[-1] > 0


def _train_in_fp16(run):
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    from launcher.stages.__main__ import main

    CPU_Accelerator.is_fp16_supported = lambda self: True  # as a GPU without bf16 would say
    return main(["train", str(run.path), "ppo"])


def test_an_adapter_trains_equally_under_zero_3_and_is_handed_on_merged(ppo_world):
    alone, many = (
        make_ppo_run(ppo_world, model=LORA, **layout) for layout in ({"zero": 1}, {"ranks": 2, "zero": 3, "micro": 4})
    )
    train(alone, "ppo")
    train(many, "ppo", ranks=2)
    assert_equal_runs(many, alone)
    assert curve(alone, "ppo", "kl")[0] == 0.0
    artifact = many.stage("ppo").artifact
    assert weights(artifact).keys() == weights(ppo_world / "policy").keys()
    assert all("lora_" in name for name in weights(artifact / "adapter", "adapter_model.safetensors"))
    assert largest_difference(weights(artifact), weights(ppo_world / "policy")) > 1e-4


RESUMED = {
    "zero 2": {"ranks": 2, "zero": 2, "micro": 2, "accum": 2},
    "zero 0": {"ranks": 1, "zero": 0},
    "zero 3 with an adapter": {"ranks": 2, "zero": 3, "micro": 4, "model": LORA},
}


@pytest.mark.parametrize("case", RESUMED.values(), ids=RESUMED.keys())
def test_a_resumed_stage_equals_the_straight_one(ppo_world, case):
    settings = {"kl_target": 1.0, "schedule": "cosine", "steps": 2, "eval_rows": 4}
    run = make_ppo_run(ppo_world, checkpoint_every=1, stage=settings, **case)
    train(run, "ppo", ranks=case["ranks"])
    stage_dir = run.stage("ppo")
    assert [folder.name for folder in stage_dir.checkpoints.glob("step*")] == ["step1"]
    straight = {name: curve(run, "ppo", name) for name in (*FIGURES, "kl_coef", "learning_rate")}
    figures, before = held_out(run, "ppo"), weights(stage_dir.artifact)
    shutil.rmtree(stage_dir.artifact)
    shutil.rmtree(stage_dir.path / "done")

    train(run, "ppo", ranks=case["ranks"])

    assert "resumed from iteration 1" in notes(run, "ppo")
    assert {name: curve(run, "ppo", name) for name in straight} == straight
    assert held_out(run, "ppo") == figures
    assert largest_difference(weights(stage_dir.artifact), before) == 0.0


def test_a_stage_goes_on_under_another_layout(ppo_world):
    """Saved by two ranks under ZeRO 2, gone on from by one at ZeRO 0: the figures of the second iteration do not change."""
    settings = {"kl_target": 1.0, "steps": 2, "eval_rows": 4}
    two = {"ranks": 2, "zero": 2, "micro": 2, "accum": 2}
    run = make_ppo_run(ppo_world, checkpoint_every=1, stage=settings, **two)
    train(run, "ppo", ranks=2)
    other = make_ppo_run(ppo_world, checkpoint_every=1, stage=settings)
    shutil.copytree(run.stage("ppo").checkpoints, other.stage("ppo").checkpoints)

    train(other, "ppo")

    assert "checkpoint step1 was saved by 2 ranks as dp 2, ZeRO 2; continued by 1 rank as dp 1, ZeRO 0" in notes(other, "ppo")
    for name in FIGURES:
        assert curve(other, "ppo", name) == pytest.approx(curve(run, "ppo", name)[1:], abs=1e-4), name
    assert largest_difference(weights(other.stage("ppo").artifact), weights(run.stage("ppo").artifact)) < 5e-5


def test_a_damaged_checkpoint_is_not_used_and_named(ppo_world):
    run = make_ppo_run(ppo_world, zero=1, checkpoint_every=2)
    train(run, "ppo")
    straight, checkpoint = curve(run, "ppo", "score"), run.stage("ppo").checkpoints / "step2"
    victim = checkpoint / "critic" / "rank0.safetensors"
    victim.write_bytes(victim.read_bytes()[:-100] + bytes(100))
    train(run, "ppo")
    assert "checkpoint step2 is not used" in notes(run, "ppo")
    assert "resumed" not in notes(run, "ppo")
    assert curve(run, "ppo", "score") == straight


def test_the_kl_coefficient_follows_its_target(ppo_world):
    run = make_ppo_run(ppo_world, stage={"kl_target": 1.0})
    train(run, "ppo")
    kl, coefs = curve(run, "ppo", "kl"), curve(run, "ppo", "kl_coef")
    expected = [0.1]
    for value in kl[:-1]:
        expected.append(expected[-1] * (1 + 0.1 * max(-0.2, min(0.2, value - 1.0))))
    assert coefs == pytest.approx(expected)
    assert coefs[1] < coefs[0]


def test_a_policy_that_leaves_the_reference_stops_the_stage(ppo_world):
    run = make_ppo_run(ppo_world, zero=1, ranks=2, micro=4, stage={"kl_stop": 0.05})
    codes, problems = refused(run, "ppo", ranks=2)
    assert codes == {5}
    assert [problem["code"] for problem in problems] == ["E564"]
    assert "kl_stop is 0.05" in problems[0]["what"]


def test_a_score_that_is_not_a_number_stops_the_stage_before_anything_is_handed_on(ppo_world):
    broken = ppo_world / "nan_reward"
    shutil.copytree(ppo_world / "reward_model", broken, dirs_exist_ok=True)
    run_ranks(_poison, broken, world=1)
    codes, problems = refused(make_ppo_run(ppo_world, reward="nan_reward"), "ppo")
    assert codes == {5}
    assert problems[0]["code"] == "E554"
    assert "score nan" in problems[0]["what"]


def _poison(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"] * float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_reward_model_with_another_tokenizer_is_refused(ppo_world):
    other = ppo_world / "other_words"
    shutil.copytree(ppo_world / "reward_model", other, dirs_exist_ok=True)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["w8"], vocab["w9"] = vocab["w9"], vocab["w8"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    codes, problems = refused(make_ppo_run(ppo_world, reward="other_words"), "ppo")
    assert (codes, problems[0]["code"]) == ({5}, "E565")


def test_a_language_model_as_reward_model_is_refused(ppo_world):
    codes, problems = refused(make_ppo_run(ppo_world, reward="policy"), "ppo")
    assert (codes, problems[0]["code"]) == ({5}, "E556")


def test_a_config_that_differs_from_the_plan_is_refused(ppo_world):
    run = make_ppo_run(ppo_world, zero=1)
    write_order(run.order("ppo"), replace(read_order(run.order("ppo")), micro_batch=4, grad_accum=2))
    codes, problems = refused(run, "ppo")
    assert (codes, problems[0]["code"]) == ({5}, "E552")


def _critic_start(run):
    import torch

    _, _, _, _, _, models = parts(run)
    ids = torch.tensor([[9, 12, 30, 31, 1]])
    ones = torch.ones_like(ids)
    with torch.no_grad():
        values = models.critic(ids, ones, torch.arange(5).unsqueeze(0))[0]
        score = models.scores(ids, ones)[0]
    matrices, rest = models.critic.optimizer.param_groups
    return values.tolist(), score.item(), (matrices["weight_decay"], rest["weight_decay"]), models.critic.module.training


@pytest.mark.parametrize("zero", [1, 3])
def test_the_critic_starts_at_the_reward_models_opinion_or_at_zero(ppo_world, zero):
    stage = {"weight_decay": 0.1}
    [(values, score, decay, _)] = run_ranks(_critic_start, make_ppo_run(ppo_world, zero=zero, stage=stage), world=1)
    assert values[-1] == pytest.approx(score, abs=1e-6)
    assert decay == (0.1, 0.0)  # norms do not decay, under ZeRO-3 either, where every parameter looks like a vector
    policy = {**stage, "critic": "policy"}
    [(values, score, _, _)] = run_ranks(_critic_start, make_ppo_run(ppo_world, zero=zero, stage=policy), world=1)
    assert values == [0.0] * 5
    assert score != 0.0


def test_ppo_raises_the_score_it_is_given_and_learns_to_finish(ppo_world):
    """Seen: score -0.11 to 0.56, finished 0.64 to 0.89. A wrong sign anywhere drives them down."""
    stage = {"steps": 15, "rollout": 64, "lr": 1e-2, "kl_coef": 0.01, "eval_rows": 16}
    run = make_ppo_run(ppo_world, zero=1, micro=32, stage=stage)
    train(run, "ppo")
    score, finished = curve(run, "ppo", "score"), curve(run, "ppo", "finished")
    assert sum(score[-5:]) / 5 > sum(score[:3]) / 3 + 0.3
    assert sum(finished[-5:]) / 5 > sum(finished[:3]) / 3 + 0.1
