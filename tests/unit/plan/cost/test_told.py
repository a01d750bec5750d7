"""What is told of a time: MFU, money, energy; and which of several is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.plan.cost.fastest import fastest
from launcher.plan.cost.price import Prices, cost_of
from launcher.plan.cost.rates import Rates, catalogue_rates
from launcher.plan.parameters import vocabulary_parameters
from launcher.plan.told import token_flops
from launcher.spec.model import Lora


# --- what is told: MFU, money, energy ---
def test_a_token_of_llama_2_7b_takes_46_gflop(load, llama):
    """6 for each weight but the embedding, 12 x layers x width x tokens for attention (PaLM, arXiv:2204.02311, appendix B)."""
    weights, attention = 6 * (load.num_params - vocabulary_parameters(llama)), 12 * 32 * 4096 * 4096
    assert token_flops(load) == pytest.approx(weights + attention)
    assert token_flops(load) == pytest.approx(46.1e9, rel=1e-3)
    assert token_flops(load, causal=True) == pytest.approx(weights + attention / 2)


def test_a_frozen_base_takes_two_passes_and_a_reward_model_has_no_vocabulary(load, llama):
    attention = 12 * 32 * 4096 * 4096
    adapter = token_flops(replace(load, adapter=Lora(rank=8)))
    assert adapter - attention == pytest.approx(2 / 3 * (token_flops(load) - attention))
    reward = token_flops(replace(load, kind="reward"))
    assert token_flops(load) - reward == pytest.approx(6 * vocabulary_parameters(llama))


def test_1000_gpu_hours_cost_their_price_and_the_energy_of_gpu_host_and_building(gpu):
    """(0.85 x 500 W + 100 W) x 1.3 = 682.5 W a GPU."""
    cost = cost_of(125 * 3600, gpu=gpu, world=8, prices=Prices())
    assert (cost.currency, cost.amount) == ("USD", 2000)
    assert cost.kwh == pytest.approx(682.5)
    assert cost.co2_kg == pytest.approx(682.5 * 0.44)


def test_prices_of_the_job_replace_the_catalogues_and_another_currency_has_no_price_of_its_own(gpu):
    euros = Prices(currency="EUR", gpu_hour={"round-80gb": 1.5}, overhead=1.1, co2_kg_per_kwh=0.05)
    cost = cost_of(3600, gpu=gpu, world=2, prices=euros)
    assert (cost.currency, cost.amount) == ("EUR", 3.0)
    assert cost.co2_kg == pytest.approx(2 * 525 * 1.1 / 1000 * 0.05)
    assert cost_of(3600, gpu=gpu, world=2, prices=Prices(currency="EUR")).amount is None


def test_what_is_not_known_costs_nothing_that_can_be_told(gpu):
    for cost in (cost_of(None, gpu=gpu, world=8, prices=Prices()), cost_of(60, gpu=None, world=8, prices=Prices())):
        assert (cost.amount, cost.kwh, cost.co2_kg) == (None, None, None)


def test_a_gpu_outside_the_catalogue_has_no_speed_and_a_cpu_rank_one_from_its_cores(gpus, cpu):
    assert catalogue_rates(replace(gpus, gpu="unheard-of")).speeds(gpus) is None
    assert Rates(gpu=None, links=None).speeds(gpus) is None
    four, eight = (catalogue_rates(replace(cpu, cores=cores)).gpu for cores in (8, 16))
    assert (four.generation, eight.tflops_16bit) == ("cpu", 2 * four.tflops_16bit)


# --- the choice ---
def test_of_times_within_2_percent_the_greatest_merit_is_taken():
    times = {"a": 1.0, "b": 1.019, "c": 1.021}
    assert fastest(list(times), seconds=times.__getitem__, merit=lambda name: name) == "b"
    assert fastest(list(times), seconds=times.__getitem__, merit=lambda name: 0) == "a"
