"""What a host must have for a stage, and from which disk what comes back."""

from __future__ import annotations

import pytest

from launcher.hosts.files.cargo import Away, cargo_of, plan_fetch
from launcher.hosts.files.disk import CONTROLLER
from launcher.hosts.files.parcels import Parcel
from launcher.rundir.artifact import write_manifest
from launcher.rundir.folder import RunDir, write_json
from launcher.rundir.order import write_order
from tests.orders import make_order


@pytest.fixture
def run(tmp_path):
    """A run whose base model is a link into a hub's cache, which holds links to its files."""
    run, hub = RunDir(tmp_path / "runs" / "job" / "id"), tmp_path / "hub"
    for name in ("blob", "snapshot/pytorch_model.bin", "snapshot/.gitattributes", "snapshot/sub/config.json"):
        (hub / name).parent.mkdir(parents=True, exist_ok=True)
        (hub / name).write_text(name)
    (hub / "snapshot" / "model.safetensors").symlink_to("../blob")
    for name in ("base/tokenizer/tokenizer.json", "stages/sft/metrics.jsonl", "stages/sft/done/rank0.json"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(name)
    (run.base / "model").symlink_to(hub / "snapshot")
    for step in (2, 4):
        folder = run.stage("sft").checkpoints / f"step{step}"
        folder.mkdir(parents=True)
        (folder / "rank0.x").write_text("x")
        write_manifest(folder, {"step": step})
    (run.stage("sft").checkpoints / "step4" / "rank0.x").unlink()
    (run.cache / "abc" / "train").mkdir(parents=True)
    for name in ("train/data.arrow", "manifest.json"):
        (run.cache / "abc" / name).write_text(name)
    write_json(run.job_json, {})
    write_json(run.stage("sft").prepared, {"train": "../../.cache/abc/train", "held_out": "../../.cache/abc/held_out"})
    write_order(run.order("sft"), make_order(model="base/model", tokenizer="base/tokenizer"))
    return run


def test_a_host_gets_what_the_stage_reads_and_of_checkpoints_the_whole_ones(run):
    cargo = cargo_of(run, "sft")
    assert sorted(cargo.files) == [
        ".cache/abc/manifest.json",
        ".cache/abc/train/data.arrow",
        "job/id/base/model/model.safetensors",
        "job/id/base/model/sub/config.json",
        "job/id/base/tokenizer/tokenizer.json",
        "job/id/job.json",
        "job/id/rendered/sft.order.json",
        "job/id/stages/sft/checkpoints/step2/manifest.json",
        "job/id/stages/sft/checkpoints/step2/rank0.x",
        "job/id/stages/sft/metrics.jsonl",
        "job/id/stages/sft/prepared.json",
    ]
    assert sorted(cargo.trees) == [
        ".cache/abc", "job/id/base/model", "job/id/base/tokenizer", "job/id/rendered", "job/id/stages/sft"
    ]  # fmt: skip


def planned(away: Away, **names: str) -> dict[str, list[str]]:
    offers = {disk: {name: Parcel(name, 1, 1) for name in listed.split()} for disk, listed in names.items()}
    return {disk: [one.name for one in wanted] for disk, wanted in plan_fetch(away, offers).items()}


def test_every_file_comes_from_where_it_was_written():
    step, logs = "checkpoints/step2", "logs/rank0.log logs/rank1.log"
    both = f"metrics.jsonl prepared.json {logs} {step}/index.json"
    away = Away(attempt="1", disks={"n1": (0,), "n2": (1,)})
    assert planned(away, n2=f"{both} {step}/rank1.x", n1=f"{both} {step}/rank0.x") == {
        "n1": ["metrics.jsonl", "logs/rank0.log", f"{step}/index.json", f"{step}/rank0.x"],
        "n2": ["logs/rank1.log", f"{step}/rank1.x"],
    }


def test_what_was_written_here_is_not_fetched_over():
    away = Away(attempt="1", disks={CONTROLLER: (0,), "n2": (1,)})
    offered = "metrics.jsonl checkpoints/step2/manifest.json checkpoints/step2/rank1.x checkpoints/step2/rank0.x"
    assert planned(away, n2=offered) == {"n2": ["checkpoints/step2/rank1.x"]}


def test_an_artifact_is_fetched_when_all_ranks_have_finished():
    offered = "artifact/model.safetensors"
    assert planned(Away(attempt="1", disks={"n1": (0,)}), n1=offered) == {"n1": []}
    assert planned(Away(attempt="1", disks={"n1": (0,)}, done={"done/rank0.json": "{}"}), n1=offered) == {"n1": [offered]}


def test_of_ranks_that_are_no_more_any_disk_gives_the_checkpoint():
    away = Away(attempt="1", disks={"n1": (0,), "n2": (1,)})
    old = "checkpoints/step2/actor/rank7.x logs/rank7.log"
    assert planned(away, n1=old, n2=old) == {"n1": ["checkpoints/step2/actor/rank7.x"], "n2": []}
