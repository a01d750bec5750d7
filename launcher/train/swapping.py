"""A stage's swap files on a local disk: in a folder of its own, new when the stage begins, gone when it has ended. DO.

DeepSpeed names them by rank and number alone, and its parameter swapper empties the folder that it is given: two runs on one
host with the same nvme_path would train on each other's weights, without a word.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from launcher.rundir.folder import RunDir, read_json
from launcher.train.ranks import barrier

OFFLOADS = ("offload_optimizer", "offload_param")


def swap_folder(ds_config: dict[str, Any], run: RunDir, stage: str) -> Path | None:
    """None where the stage swaps nothing."""
    sections = (ds_config.get("zero_optimization", {}).get(name, {}) for name in OFFLOADS)
    disk = next((section["nvme_path"] for section in sections if "nvme_path" in section), None)
    return Path(disk) / f"{run.path.parent.name}-{run.path.name}-{stage}" if disk else None


def swap_apart(ds_config: dict[str, Any], run: RunDir, stage: str) -> None:
    """Let an engine made of `ds_config` swap in the stage's own folder, which is emptied. Collective where it swaps."""
    folder = swap_folder(ds_config, run, stage)
    if folder is None:
        return
    _remove(folder)  # of an attempt that was killed
    for name in OFFLOADS:
        section = ds_config["zero_optimization"].get(name, {})
        if "nvme_path" in section:
            section["nvme_path"] = str(folder)
    barrier()


def clear_swap_files(run: RunDir, stage: str) -> None:
    """When no rank reads a weight any more. Collective where the stage swaps."""
    folder = swap_folder(read_json(run.ds_config(stage)), run, stage)
    if folder is not None:
        barrier()
        _remove(folder)


def _remove(folder: Path) -> None:
    """Each host's own: one rank of it does it for the others."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        shutil.rmtree(folder, ignore_errors=True)
