"""Swap files of two stages never lie in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.rundir.folder import RunDir, write_json
from launcher.train import swapping

ONE, OTHER = (RunDir(Path("/runs/tiny") / name) for name in ("20261128-1", "20261128-2"))


def config(disk: Path, *names: str) -> dict:
    return {"zero_optimization": {"stage": 3, **{name: {"device": "nvme", "nvme_path": str(disk)} for name in names}}}


@pytest.mark.parametrize("names", [("offload_optimizer",), ("offload_param",), swapping.OFFLOADS])
def test_each_run_and_stage_has_a_folder_of_its_own(tmp_path, names):
    told = [config(tmp_path, *names) for _ in range(3)]
    for one, (run, stage) in zip(told, [(ONE, "sft"), (OTHER, "sft"), (ONE, "dpo")], strict=True):
        swapping.swap_apart(one, run, stage)
    paths = [{one["zero_optimization"][name]["nvme_path"] for name in names} for one in told]
    assert [len(one) for one in paths] == [1, 1, 1]
    assert len(set.union(*paths)) == 3
    assert all(Path(path).parent == tmp_path for path in set.union(*paths))


def test_what_a_killed_attempt_left_goes_first_and_nothing_else(tmp_path):
    left, others = (tmp_path / f"tiny-{run.path.name}-sft" / "zero_stage_3" for run in (ONE, OTHER))
    left.mkdir(parents=True)
    others.mkdir(parents=True)
    swapping.swap_apart(config(tmp_path, "offload_param"), ONE, "sft")
    assert (left.exists(), others.exists()) == (False, True)


def test_a_stage_that_has_ended_leaves_nothing_on_the_disk(tmp_path):
    run, disk = RunDir(tmp_path / "tiny" / "1"), tmp_path / "disk"
    write_json(run.ds_config("sft"), config(disk, "offload_param"))
    mine, others = disk / "tiny-1-sft" / "x.swp", disk / "tiny-2-sft" / "x.swp"
    for path in (mine, others):
        path.parent.mkdir(parents=True)
        path.write_text("weights")
    swapping.clear_swap_files(run, "sft")
    assert [path for path in disk.rglob("*") if path.is_file()] == [others]


def test_a_stage_in_memory_is_left_alone():
    told = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    swapping.swap_apart(told, ONE, "sft")
    assert told == {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
