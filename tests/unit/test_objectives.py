"""What the four stages minimise, against numbers worked out by hand; the same numbers in TRL: tests/stages/equal_runs."""

from __future__ import annotations

import math

import pytest
import torch

from launcher.train.batches import Batch
from launcher.train.objectives import bradley_terry, language_losses, preference


def test_language_is_nats_and_hits_of_each_sequence():
    batch = Batch(ids_ST=torch.zeros(2, 3), goal=torch.zeros(2, 3), num_rows=2, weight=4)
    sums = language_losses((torch.tensor([1.5, 2.5]), torch.tensor([1.0, 0.0])), batch)

    assert {name: values.tolist() for name, values in sums.items()} == {"loss": [1.5, 2.5], "token_accuracy": [1.0, 0.0]}


def test_a_scorer_minimises_the_log_odds_of_the_right_order():
    """Scores of two pairs: chosen 1 and 0, rejected 0 and 2."""
    sums = bradley_terry(torch.tensor([1.0, 0.0, 0.0, 2.0]), center=0.0)

    assert sums["loss"].tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))])
    assert sums["accuracy"].tolist() == [1.0, 0.0]
    assert sums["margin"].tolist() == [1.0, -2.0]
    assert sums["mean_reward"].tolist() == [0.5, 1.0]


def test_scores_far_from_zero_cost_by_the_square_of_their_sum():
    plain, centred = (bradley_terry(torch.tensor([3.0, 1.0]), center=center)["loss"].item() for center in (0.0, 0.01))

    assert centred - plain == pytest.approx(0.01 * 16)


def test_dpo_is_the_log_odds_of_how_much_further_the_chosen_answer_moved():
    """Policy log-probabilities -10 and -12, reference -11 and -12.5: moved by 1 and 0.5."""
    sums = preference(torch.tensor([10.0, 12.0]), torch.tensor([-11.0, -12.5]), beta=0.1)

    assert sums["margin"].item() == pytest.approx(0.05)
    assert sums["loss"].item() == pytest.approx(math.log(1 + math.exp(-0.05)))
    assert (sums["chosen_logp"].item(), sums["rejected_logp"].item()) == (-10.0, -12.0)
    assert sums["accuracy"].item() == 1.0


def test_all_chosen_come_before_all_rejected():
    sums = preference(torch.tensor([1.0, 2.0, 30.0, 40.0]), torch.zeros(4), beta=1.0)

    assert sums["chosen_logp"].tolist() == [-1.0, -2.0]
    assert sums["rejected_logp"].tolist() == [-30.0, -40.0]


def test_a_policy_that_is_its_reference_has_no_preference_and_a_tie_is_no_win():
    sums = preference(torch.tensor([5.0, 7.0]), torch.tensor([-5.0, -7.0]), beta=0.1)

    assert sums["loss"].item() == pytest.approx(math.log(2))
    assert (sums["margin"].item(), sums["accuracy"].item()) == (0.0, 0.0)


def test_large_margins_stay_finite():
    for scores in ([1e4, -1e4], [-1e4, 1e4]):
        assert math.isfinite(bradley_terry(torch.tensor(scores), center=0.0)["loss"].item())
