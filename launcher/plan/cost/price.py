"""Prices: seconds on GPUs -> money, energy and CO2. DERIVE, pure.

Energy is what the GPUs draw at work, their share of the host, and the building's overhead. The defaults are means: a GPU in
training draws about 0.85 of its limit, a host adds 100 W a GPU, a data centre 1.3 times the whole (Uptime Institute's survey is
1.5 for all, 1.1-1.3 for large ones), a kWh 0.44 kg of CO2 (world mean, IEA 2024). A job names its own in cluster.prices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.plan.gpus import Gpu
from launcher.plan.plan import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    currency: str = "USD"
    gpu_hour: Mapping[str, float] = field(default_factory=dict)  # by catalogue name; else the catalogue's price, in USD
    power_share: float = 0.85  # of a GPU's limit
    host_watts_per_gpu: float = 100.0
    overhead: float = 1.3  # power usage effectiveness of the building
    co2_kg_per_kwh: float = 0.44


def cost_of(seconds: float | None, *, gpu: Gpu | None, world: int, prices: Prices) -> Cost:
    """Of `world` such GPUs for so long; None for what cannot be told."""
    if seconds is None or gpu is None:
        return Cost(currency=prices.currency, amount=None, kwh=None, co2_kg=None)
    hours = seconds / 3600 * world
    price = prices.gpu_hour.get(gpu.name, gpu.usd_per_hour if prices.currency == "USD" else 0.0)
    watts = prices.power_share * gpu.watts + (prices.host_watts_per_gpu if gpu.generation != "cpu" else 0.0)
    kwh = hours * watts * prices.overhead / 1000 if gpu.watts else None
    return Cost(
        currency=prices.currency,
        amount=hours * price if price or gpu.name in prices.gpu_hour else None,
        kwh=kwh,
        co2_kg=kwh * prices.co2_kg_per_kwh if kwh is not None else None,
    )
