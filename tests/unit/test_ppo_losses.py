"""Every formula of PPO against numbers worked out by hand. Needs torch, no ranks, no model."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from launcher.train import ppo_losses as ppo  # noqa: E402


def tensor(*rows: list[float]):
    return torch.tensor(rows, dtype=torch.float32)


def close(got, expected) -> bool:
    return torch.allclose(torch.as_tensor(got, dtype=torch.float32), torch.as_tensor(expected, dtype=torch.float32), atol=1e-6)


def test_the_answer_ends_with_its_first_end_token_and_holds_it():
    assert ppo.answer_mask(torch.tensor([[5, 1, 0, 0], [5, 6, 7, 8]]), end=1).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_a_second_end_token_is_behind_the_end():
    assert ppo.answer_mask(torch.tensor([[1, 1, 5]]), end=1).tolist() == [[1, 0, 0]]


def test_positions_are_counted_from_the_first_real_token():
    assert ppo.position_ids(torch.tensor([[0, 0, 1, 1, 1]])).tolist() == [[0, 0, 0, 1, 2]]


def test_the_reward_lands_on_the_end_token_and_not_on_padding():
    rewards = ppo.token_rewards(
        torch.tensor([2.0]), tensor([-1, -2, -9]), tensor([-1.5, -1.0, -3]), tensor([1, 1, 0]), kl_coef=0.1
    )
    assert close(rewards, [[-0.05, 2.1, 0.0]])


def test_the_reward_of_an_answer_without_padding_lands_in_the_last_column():
    rewards = ppo.token_rewards(torch.tensor([2.0]), tensor([0, 0]), tensor([0, 0]), tensor([1, 1]), kl_coef=0.1)
    assert close(rewards, [[0.0, 2.0]])


def test_advantages_and_returns_are_those_worked_out_by_hand():
    advantages, returns = ppo.gae(tensor([0, 0, 1]), tensor([0.5, 0.4, 0.3]), tensor([1, 1, 1]), gamma=1.0, lam=0.95)
    assert close(advantages, [[0.43675, 0.565, 0.7]])
    assert close(returns, [[0.93675, 0.965, 1.0]])


def test_values_behind_the_end_do_not_leak_into_the_advantages():
    advantages, _ = ppo.gae(tensor([0, 1, 9]), tensor([0.5, 0.4, 9.0]), tensor([1, 1, 0]), gamma=1.0, lam=0.95)
    assert close(advantages, [[0.47, 0.6, 0.0]])


def test_the_discount_counts_in_steps_and_in_the_next_value():
    # delta_1 = 1 - 0.5 = 0.5; delta_0 = 0 + 0.5 * 0.5 - 0.25 = 0; advantage_0 = 0 + 0.5 * 0.8 * 0.5 = 0.2
    advantages, _ = ppo.gae(tensor([0, 1]), tensor([0.25, 0.5]), tensor([1, 1]), gamma=0.5, lam=0.8)
    assert close(advantages, [[0.2, 0.5]])


def test_the_policy_loss_is_the_worse_of_plain_and_clipped():
    loss, ratio = ppo.policy_loss(
        torch.log(tensor([1.5, 0.5])), tensor([0, 0]), tensor([1, -1]), tensor([1, 1]), clip=0.2, num_tokens=2
    )
    assert close(loss, (-1.2 + 0.8) / 2)
    assert close(ratio, [[1.5, 0.5]])


def test_padding_counts_neither_in_the_policy_loss_nor_in_the_ratio():
    loss, ratio = ppo.policy_loss(tensor([0.0, 7.0]), tensor([0, 0]), tensor([1, 99]), tensor([1, 0]), clip=0.2, num_tokens=1)
    assert close(loss, -1.0)
    assert close(ratio, [[1.0, 1.0]])


def test_the_value_loss_takes_the_larger_error_of_plain_and_clipped():
    loss = ppo.value_loss(tensor([1.0]), tensor([0.0]), tensor([0.5]), tensor([1]), clip=0.2, num_tokens=1)
    assert close(loss, 0.125)  # 0.5 * max((1 - 0.5)^2, (0.2 - 0.5)^2)


def test_whitened_advantages_leave_padding_out():
    assert torch.allclose(ppo.whiten(tensor([1, 3, 100]), tensor([1, 1, 0])), tensor([-1, 1, 0]), atol=1e-5)


def test_advantages_are_whitened_over_all_ranks_and_not_on_each():
    whole_x, whole_mask = tensor([1, 3, 0], [5, 9, 4]), tensor([1, 1, 0], [1, 1, 1])
    whole = ppo.whiten(whole_x, whole_mask)
    total, count = (whole_x * whole_mask).sum(), whole_mask.sum()
    variance = (((whole_x - total / count) ** 2) * whole_mask).sum()
    answers = iter([torch.stack([total, count]), variance])  # what an all-reduce would give to each rank
    part = ppo.whiten(whole_x[:1], whole_mask[:1], sum_over_ranks=lambda _: next(answers))
    assert close(part, whole[:1])
    assert not close(part, ppo.whiten(whole_x[:1], whole_mask[:1]))


def test_token_means_do_not_depend_on_how_the_rows_are_split():
    """The sum over micro-batches, averaged over ranks as the engines do, is the mean over all tokens."""
    torch.manual_seed(0)
    logp, old, advantages = torch.randn(8, 6), torch.randn(8, 6), torch.randn(8, 6)
    mask = (torch.arange(6) < torch.tensor([[1], [6], [2], [5], [3], [6], [1], [4]])).float()

    def gradient(parts: list[list[slice]]):
        leaf = logp.clone().requires_grad_()
        num_tokens = mask.sum() / len(parts)  # parts[rank][micro-batch]
        for rank in parts:
            for rows in rank:
                loss, _ = ppo.policy_loss(leaf[rows], old[rows], advantages[rows], mask[rows], clip=0.2, num_tokens=num_tokens)
                (loss / len(parts)).backward()
        return leaf.grad

    whole = gradient([[slice(0, 8)]])
    assert close(gradient([[slice(0, 4)], [slice(4, 8)]]), whole)
    assert close(gradient([[slice(i, i + 1) for i in range(8)]]), whole)
    assert close(gradient([[slice(0, 1), slice(1, 4)], [slice(4, 7), slice(7, 8)]]), whole)


def test_log_probabilities_belong_to_the_tempered_distribution_and_padding_has_none():
    logits = torch.tensor([[[5.0, 2 * math.log(3.0), 0.0]]])  # token 0 is the padding token
    tempered = ppo.tempered(logits, temperature=2.0, never=0)
    assert close(ppo.token_logps(tempered, torch.tensor([[1]])), [[math.log(0.75)]])
    assert close(ppo.token_logps(tempered, torch.tensor([[2]])), [[math.log(0.25)]])
    assert close(ppo.entropy(tempered), [[-0.75 * math.log(0.75) - 0.25 * math.log(0.25)]])


def test_tempering_leaves_the_given_logits_alone():
    logits = torch.zeros(1, 1, 3)
    ppo.tempered(logits, temperature=1.0, never=0)
    assert logits.tolist() == [[[0.0, 0.0, 0.0]]]


def test_explained_variance_is_one_for_a_perfect_critic_zero_for_the_mean_and_negative_for_a_worse_one():
    returns, mask = tensor([1, 3, 50]), tensor([1, 1, 0])
    figure = lambda values: ppo.explained_variance(ppo.explained_variance_sums(values, returns, mask))  # noqa: E731
    assert figure(tensor([1, 3, 0])) == pytest.approx(1.0)
    assert figure(tensor([2, 2, 0])) == pytest.approx(0.0)
    assert figure(tensor([1.5, 2.5, 0])) == pytest.approx(0.75)  # errors -+0.5: variance 0.25 of 1
    assert figure(tensor([3, 1, 0])) == pytest.approx(-3.0)  # errors -+2: variance 4 of 1


def test_sums_of_explained_variance_add_up_over_ranks():
    returns, values, mask = torch.randn(4, 3), torch.randn(4, 3), torch.ones(4, 3)
    parts = sum(ppo.explained_variance_sums(values[i : i + 2], returns[i : i + 2], mask[i : i + 2]) for i in (0, 2))
    assert torch.allclose(parts, ppo.explained_variance_sums(values, returns, mask))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (6.6, 0.101), (60.0, 0.102), (0.0, 0.098), (5.4, 0.099)],
)
def test_the_kl_coefficient_follows_the_target_by_at_most_two_percent(kl, expected):
    assert ppo.adapted_kl_coef(0.1, kl=kl, target=6.0) == pytest.approx(expected)


def test_the_learning_rate_rises_over_the_warm_up_and_then_falls():
    shares = [ppo.rate_share(i, 8, warmup=0.25, schedule="linear") for i in range(8)]
    assert shares == pytest.approx([1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert ppo.rate_share(5, 8, warmup=0.25, schedule="cosine") == pytest.approx(0.5)
    assert ppo.rate_share(7, 8, warmup=0.25, schedule="constant") == 1.0


def test_the_learning_rate_without_warm_up_starts_at_its_peak():
    assert ppo.rate_share(0, 8, warmup=0.0, schedule="cosine") == 1.0


def test_every_row_is_in_one_minibatch_and_a_lane_never_changes_its_rank():
    order = ppo.minibatch_order(3, 8, generator=torch.Generator().manual_seed(1))
    rows = order * 8 + torch.arange(8)
    assert sorted(rows.flatten().tolist()) == list(range(24))
    assert all((row % 8 == torch.arange(8)).all() for row in rows)
    assert not torch.equal(order, torch.arange(3).unsqueeze(1).expand(3, 8))  # it does shuffle
