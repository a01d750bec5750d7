"""Point -> seconds that a step waits because optimizer, parameters or activations of it rest on the host.

The launcher's own way of counting (launcher/plan/cost/of_stage.py), for other programs' steps: gradients down and parameters up
over PCIe, Adam at the speed of the host's memory, which the ranks of a host share.
"""

from __future__ import annotations

from launcher.plan.cost.constants import Constants
from launcher.plan.cost.step import StepTime
from launcher.plan.cost.work import Work, element_bytes
from launcher.plan.parameters import block_sizes, vocabulary_parameters
from published.rows import Point


def host_seconds(point: Point, constants: Constants, time: StepTime) -> float:
    """Beside what the step takes without; less than nothing where the device is spared more."""
    if not point.on_host:
        return 0.0
    work, seconds = point.work, 0.0
    pcie, ranks = point.links.pcie_gbs * 1e9 * constants.pcie_share, min(point.links.host_gpus, work.world)
    size, held = element_bytes(work.arithmetic), parameters_of_rank(work)
    owned = held / (work.shards if work.zero else 1)
    if "optimizer" in point.on_host and work.trained == "all":
        times = work.micro_batches if work.zero >= 2 else 1
        adam = constants.optimizer_bytes * owned * ranks / (constants.host_gbs * 1e9)
        seconds += size * owned * (times + 1) / pcie + adam + constants.step_s - time.parts["optimizer"]
    if "parameters" in point.on_host:
        seconds += work.micro_batches * 2 * size * owned / pcie
    if "activations" in point.on_host:
        seconds += work.micro_batches * 2 * work.shape.layers / work.pp * size * work.tokens * work.shape.hidden / pcie
    return seconds


def parameters_of_rank(work: Work) -> float:
    """Of the fullest rank, before ZeRO."""
    shape = work.shape
    ends = vocabulary_parameters(shape) * (1 if work.pp > 1 or shape.tied else 2)
    return (sum(block_sizes(shape)) / work.pp + ends) / work.tp
