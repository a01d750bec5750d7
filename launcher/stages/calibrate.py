"""The ranks of this machine measure it, all at once: result.json holds the figures that a plan is calibrated by.

Started by `launcher calibrate` as the ranks of a stage are; one rank: `python -m launcher.stages calibrate RUN cpu`.
"""

from __future__ import annotations

from launcher.rundir.folder import StageDir, write_json
from launcher.train.ranks import join
from launcher.train.speed import CPU, CUDA, measure


def run(stage_dir: StageDir, device: str) -> int:
    """The number of ranks that measured. fp32 products are rounded to TF32 only where a job says so: not here."""
    ranks = join(device, tf32=False)
    figures = measure(ranks, CPU if device == "cpu" else CUDA)
    if ranks.first:
        write_json(stage_dir.result, figures)
    return ranks.world
