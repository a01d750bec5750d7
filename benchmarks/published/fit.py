"""Constants that measurements decide, fitted together: each near what is known beforehand, as strongly as it is known.

The estimate is the maximum of a posterior: residuals are logarithms of predicted / measured with Huber's loss, priors are
normal in the logarithm. Rows of one source err together, so that n rows count as n / (1 + (n - 1) x 0.1). Gauss-Newton with
finite differences; 40 constants and 553 rows take some seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from launcher.plan.cost.constants import PUBLISHED, Constants
from launcher.plan.cost.of_stage import Clock, Speeds
from launcher.plan.cost.step import step_time
from published.hosts import host_seconds
from published.peaks import PeakConstants, peak_bytes
from published.rows import Point

Known = TypeVar("Known", Constants, PeakConstants)
SPREAD = 0.10  # of a residual, where the loss turns from square to straight
TOGETHER = 0.1  # correlation of the errors of one source
STEP = 0.02

# name: (value known beforehand, spread of its logarithm)
TIME_PRIORS: dict[str, tuple[float, float]] = {
    "matrix_ampere": (0.80, 0.08),  # 0.87 was reached by searching for the best size (MAMF)
    "matrix_hopper": (0.70, 0.10),  # 0.80 by MAMF, less under a power limit over hours
    "matrix_blackwell": (0.70, 0.12),
    "matrix_blackwell_ultra": (0.82, 0.12),  # as Blackwell, with a sixth more power
    "half_depth": (500, 0.5),
    "fp8_gain": (1.7, 0.10),
    "fp4_share": (0.7, 0.2),
    "align_64": (0.85, 0.1),
    "align_8": (0.5, 0.25),
    "memory_share": (0.8, 0.15),
    "flash1": (0.40, 0.25),
    "flash2": (0.50, 0.2),
    "cudnn": (0.60, 0.2),
    "backward_attention": (0.80, 0.2),
    "older_kernel": (0.6, 0.2),
    "batched_product": (0.5, 0.3),
    "softmax_passes": (6, 0.3),
    "elements": (1.0, 0.15),
    "loss_bytes": (16, 0.4),
    "launch_eager": (1.2e-3, 0.5),
    "launch_adapter": (1.6e-3, 0.5),
    "launch_packed": (2.2e-3, 0.5),
    "launch_zero3": (4e-3, 0.3),
    "unpack_gptq": (9, 0.5),
    "nvlink_share": (0.75, 0.15),
    "nic_share": (0.8, 0.2),
    "tensor_exposed": (0.9, 0.2),
    "tensor_exposed_overlapped": (0.5, 0.4),
    "data_exposed": (0.4, 0.6),
    "shard_exposed": (0.12, 0.5),
    "shard_interference": (0.15, 0.5),
    "shard_scale": (900, 0.7),
    "hop_exposed": (0.7, 0.6),
    "deepspeed": (1.10, 0.04),
    "deepspeed_zero3": (1.10, 0.10),
    "instruction_s": (4e-3, 0.5),
    "optimizer_bytes": (28, 0.3),
    "step_s": (5e-3, 0.7),
}
PEAK_PRIORS: dict[str, tuple[float, float]] = {
    "context": (1.5e9, 0.2),
    "communicator": (0.35e9, 0.4),
    "fragmentation": (1.06, 0.03),
    "recomputed": (2.0, 0.25),
    "adapter_keeps": (1.3, 0.15),
    "kept": (1.0, 0.15),
    "logit_bytes": (11, 0.2),
    "logit_bytes_parallel": (10, 0.2),
    "buckets": (1.0, 0.4),
    "live": (1.0, 0.4),
    "packed": (0.56, 0.1),
    "adapter": (16, 0.15),
    "ends": (9, 0.2),
}
TIME_START = replace(PUBLISHED, **{name: value for name, (value, _) in TIME_PRIORS.items()})
PEAK_START = replace(PeakConstants(), **{name: value for name, (value, _) in PEAK_PRIORS.items()})


def predict_time(point: Point, constants: Constants) -> float:
    """Seconds of an optimizer step."""
    if point.own:
        speeds = Speeds(
            gpu=point.gpu, links=point.links, stack=point.stack, constants=constants, host_ranks=min(8, point.work.world)
        )
        return Clock(point.own.load, speeds).time(point.own.layout).step_s
    time = step_time(point.work, point.gpu, point.links, stack=point.stack, constants=constants)
    return time.step_s + host_seconds(point, constants, time)


def fit_times(points: Sequence[Point]) -> Constants:
    return _fit(points, TIME_START, TIME_PRIORS, predict_time)


def fit_peaks(points: Sequence[Point]) -> PeakConstants:
    return _fit(points, PEAK_START, PEAK_PRIORS, peak_bytes)


def _fit(
    points: Sequence[Point],
    start: Known,
    priors: dict[str, tuple[float, float]],
    predict: Callable[[Point, Known], float],
) -> Known:
    names = list(priors)
    prior = np.log([priors[name][0] for name in names])
    spread = np.array([priors[name][1] for name in names])
    measured = np.log([point.value for point in points])
    count = Counter(point.source for point in points)
    weight = np.array([1 / (1 + (count[point.source] - 1) * TOGETHER) for point in points])

    def known(values: np.ndarray) -> Known:
        return replace(start, **dict(zip(names, np.exp(values).tolist(), strict=True)))

    def residuals(values: np.ndarray) -> np.ndarray:
        constants = known(values)
        return np.log([predict(point, constants) for point in points]) - measured

    def cost(values: np.ndarray, residual: np.ndarray) -> float:
        size = np.abs(residual) / SPREAD
        huber = np.where(size < 1, size**2 / 2, size - 0.5)
        return float((weight * huber).sum() + (((values - prior) / spread) ** 2).sum() / 2)

    values, damping = prior.copy(), 1e-2
    residual = residuals(values)
    best = cost(values, residual)
    for _ in range(15):
        jacobian = np.stack([(residuals(values + STEP * unit) - residual) / STEP for unit in np.eye(len(names))], axis=1)
        size = np.abs(residual) / SPREAD
        straight = weight * np.where(size < 1, 1.0, 1 / np.maximum(size, 1e-9)) / SPREAD**2
        curved = jacobian.T @ (straight[:, None] * jacobian)
        downhill = -jacobian.T @ (straight * residual) - (values - prior) / spread**2
        for _ in range(6):
            system = curved + np.diag(1 / spread**2 + damping * (curved.diagonal() + 1e-6))
            tried = values + np.clip(np.linalg.solve(system, downhill), -0.5, 0.5)
            tried_residual = residuals(tried)
            tried_cost = cost(tried, tried_residual)
            if tried_cost < best:
                break
            damping *= 5
        else:
            break
        gained, values, residual, best = best - tried_cost, tried, tried_residual, tried_cost
        damping = max(damping / 5, 1e-4)
        if gained < 0.05:
            break
    return known(values)
