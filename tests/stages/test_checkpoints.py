"""Checkpoints: sealed by all ranks together, verified by all ranks together, whatever the layout was; damage is named."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.rundir.artifact import find_damage, read_manifest, sha256_file, write_manifest
from launcher.rundir.folder import StageDir
from launcher.rundir.order import StageOrder
from tests.orders import make_order
from tests.stages.harness import fork_ranks, run_ranks

pytestmark = pytest.mark.ranks

ORDER = make_order(checkpoint_every=1)


def recorded(module, name: str) -> list[str]:
    """The names of the files that `module.name` is called with from now on, in this rank."""
    kept, seen = getattr(module, name), []

    def record(path: Path):
        seen.append(path.name)
        return kept(path)

    setattr(module, name, record)
    return seen


def save(folder: Path, steps: list[int], keep: int, order: StageOrder = ORDER) -> tuple[list[str], list[str]]:
    """Seal one checkpoint after the other; the names of the files that this rank hashed, by itself and in write_manifest."""
    from launcher.rundir import artifact
    from launcher.train import checkpoints
    from launcher.train.ranks import barrier, meet

    ranks, stage_dir = meet(order), StageDir(folder)
    own, rest = recorded(checkpoints, "file_entry"), recorded(artifact, "file_entry")
    for step in steps:
        written = checkpoints.work_folder(stage_dir) / f"step{step}"
        if ranks.first:
            (written / "actor").mkdir(parents=True)
            (written / "actor" / "index.json").write_text(f"index of {step}")
        barrier()
        (written / "actor" / f"rank{ranks.rank}.safetensors").write_text(f"states {step} of {ranks.rank}" * 100)
        checkpoints.seal(stage_dir, written, order, ranks, step=step, inputs="inputs", keep=keep)
    return own, rest


def resume(folder: Path, order: StageOrder = ORDER, inputs: str = "inputs"):
    """(name of the checkpoint, its step, notices), and the files that this rank hashed."""
    from launcher.rundir import artifact
    from launcher.train.checkpoints import find_resume
    from launcher.train.ranks import meet

    ranks = meet(order)
    hashed = recorded(artifact, "sha256_file")
    found = find_resume(StageDir(folder), order, ranks, inputs=inputs)
    return (found.folder and found.folder.name, found.step, found.notices), hashed


def resumed(folder: Path, order: StageOrder = ORDER, inputs: str = "inputs"):
    """What all ranks agree on."""
    answers = [answer for answer, _ in run_ranks(resume, folder, order, inputs, world=order.world)]
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed") / "sft"
    run_ranks(save, folder, [1, 2, 3], 2)
    return folder


@pytest.fixture
def saved(sealed, tmp_path):
    """A stage folder with the checkpoints of steps 2 and 3, to be damaged."""
    return shutil.copytree(sealed, tmp_path / "sft")


def test_every_rank_hashes_its_own_files_and_the_first_the_rest(tmp_path):
    first, second = run_ranks(save, tmp_path / "sft", [1], 2)
    assert first == (["rank0.safetensors"], ["index.json"])
    assert second == (["rank1.safetensors"], [])


def test_a_sealed_checkpoint_lists_all_files_and_old_ones_go(saved):
    assert sorted(path.name for path in (saved / "checkpoints").glob("step*")) == ["step2", "step3"]
    newest = saved / "checkpoints" / "step3"
    assert find_damage(newest) == []
    manifest = read_manifest(newest)
    assert list(manifest["files"]) == ["actor/index.json", "actor/rank0.safetensors", "actor/rank1.safetensors"]
    assert manifest["files"]["actor/rank1.safetensors"]["sha256"] == sha256_file(newest / "actor" / "rank1.safetensors")
    layout = {"world": 2, "dp": 2, "tp": 1, "pp": 1, "sp": 1, "zero": 1, "precision": "fp32"}
    assert manifest.items() >= {"format": 2, "stage": "sft", "step": 3, "inputs": "inputs", **layout}.items()


def test_the_newest_is_taken_and_its_files_are_hashed_once_among_all_ranks(saved):
    (answer, first), (same, second) = run_ranks(resume, saved)
    assert answer == same == ("step3", 3, ())
    assert sorted(first + second) == ["index.json", "rank0.safetensors", "rank1.safetensors"]
    assert first
    assert second


def test_another_layout_is_gone_on_from_and_said(saved):
    moved = replace(ORDER, world=1, dp=1, zero=3, grad_accum=2)
    notice = "checkpoint step3 was saved by 2 ranks as dp 2, ZeRO 1; continued by 1 rank as dp 1, ZeRO 3"
    assert resumed(saved, moved) == ("step3", 3, (notice,))


def test_degrees_of_the_layout_are_named(tmp_path):
    order = replace(ORDER, dp=1, tp=2)
    run_ranks(save, tmp_path / "sft", [1], 2, order)
    notice = "checkpoint step1 was saved by 2 ranks as dp 1 x tp 2, ZeRO 1; continued by 2 ranks as dp 2, ZeRO 1"
    assert resumed(tmp_path / "sft") == ("step1", 1, (notice,))


@pytest.mark.parametrize(
    ("order", "inputs", "reason"),
    [
        (ORDER, "others", "its hash of settings, data and parents is inputs, this run's is others"),
        (replace(ORDER, precision="bf16"), "inputs", "its precision is fp32, this run's is bf16"),
        (replace(ORDER, stage="tune"), "inputs", "its stage is sft, this run's is tune"),
    ],
    ids=["inputs", "precision", "stage"],
)
def test_what_does_not_fit_is_refused_by_name(sealed, order, inputs, reason):
    notices = tuple(f"checkpoint step{step} is not used: {reason}" for step in (3, 2))
    assert resumed(sealed, order, inputs) == (None, 0, notices)


def test_a_checkpoint_in_deepspeeds_own_format_is_refused_by_name(saved):
    newest = saved / "checkpoints" / "step3"
    facts = {key: value for key, value in read_manifest(newest).items() if key not in ("schema", "files", "format")}
    write_manifest(newest, facts)
    assert resumed(saved) == ("step2", 2, ("checkpoint step3 is not used: its format is None, this run's is 2",))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {flip_a_bit: "has another sha256", truncate: "has 1299 bytes instead of 1300", Path.unlink: "is missing"}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_file_of_any_rank_sends_all_ranks_to_the_checkpoint_before(saved, damage, rank):
    damage(saved / "checkpoints" / "step3" / "actor" / f"rank{rank}.safetensors")
    reason = f"actor/rank{rank}.safetensors {DAMAGE[damage]}"
    assert resumed(saved) == ("step2", 2, (f"checkpoint step3 is not used: {reason}",))


def test_a_file_that_nobody_wrote_is_damage(saved):
    (saved / "checkpoints" / "step3" / "actor" / "rank7.safetensors").write_text("from elsewhere")
    reason = "actor/rank7.safetensors is not in the manifest"
    assert resumed(saved) == ("step2", 2, (f"checkpoint step3 is not used: {reason}",))


def die_while_writing(folder: Path) -> None:
    from launcher.train import checkpoints
    from launcher.train.ranks import barrier, meet

    ranks, stage_dir = meet(ORDER), StageDir(folder)
    written = checkpoints.work_folder(stage_dir) / "step4"
    written.mkdir(parents=True, exist_ok=True)
    barrier()
    (written / f"rank{ranks.rank}.safetensors").write_text("half")
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    checkpoints.seal(stage_dir, written, ORDER, ranks, step=4, inputs="inputs", keep=2)


def test_what_a_killed_rank_was_writing_is_no_checkpoint(saved):
    ends = fork_ranks(die_while_writing, saved)
    assert ends[1].exit_code == -signal.SIGKILL
    assert ends[0].exit_code != 0
    assert (saved / "checkpoints" / ".work" / "step4").is_dir()
    assert not (saved / "checkpoints" / "step4").exists()

    assert resumed(saved) == ("step3", 3, ())
    assert not (saved / "checkpoints" / ".work").exists()


# --- hosts with disks of their own ---------------------------------------------------------------------------------


def save_apart(folder: Path, steps: list[int], keep: int) -> None:
    """Each rank on a disk of its own, as the first rank of its host."""
    from launcher.rundir.folder import TENDS
    from launcher.train import checkpoints
    from launcher.train.ranks import barrier, meet, tends

    ranks = meet(ORDER)
    os.environ.update({"LOCAL_RANK": "0", TENDS: "1"})
    stage_dir = StageDir(folder / f"disk{ranks.rank}")
    for step in steps:
        written = checkpoints.work_folder(stage_dir) / f"step{step}"
        if tends():
            written.mkdir(parents=True)
        if ranks.first:
            (written / "index.json").write_text(f"index of {step}")
        barrier()
        (written / f"rank{ranks.rank}.safetensors").write_text(f"states {step} of {ranks.rank}")
        checkpoints.seal(stage_dir, written, ORDER, ranks, step=step, inputs="inputs", keep=keep)


def test_on_two_disks_each_has_the_manifest_and_its_own_files_and_drops_old_ones(tmp_path):
    run_ranks(save_apart, tmp_path, [1, 2, 3], 2)
    disks = [tmp_path / f"disk{rank}" / "checkpoints" for rank in range(2)]
    assert [sorted(path.name for path in disk.glob("step*")) for disk in disks] == [["step2", "step3"]] * 2
    assert len({(disk / "step3" / "manifest.json").read_text() for disk in disks}) == 1
    assert [damage.file for damage in find_damage(disks[0] / "step3")] == ["rank1.safetensors"]
    assert [damage.file for damage in find_damage(disks[1] / "step3")] == ["index.json", "rank0.safetensors"]
    shutil.copytree(disks[1] / "step3", disks[0] / "step3", dirs_exist_ok=True)
    assert find_damage(disks[0] / "step3") == []


def spread_apart(folder: Path, names: dict[str, str]) -> None:
    from launcher.rundir.folder import TENDS
    from launcher.train import spread
    from launcher.train.ranks import meet

    ranks = meet(ORDER)
    os.environ.update({"LOCAL_RANK": "0", TENDS: "1"})
    spread.CHUNK_BYTES = 4
    mine = folder / f"disk{ranks.rank}" / "artifact"
    for name, text in (names if ranks.first else {"stale": "x"}).items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(text)
    spread.spread(mine, ranks)


def test_a_folder_of_rank_0_is_spread_to_every_disk(tmp_path):
    names = {"model.safetensors": "0123456789", "adapter/config.json": "{}", "empty": ""}
    run_ranks(spread_apart, tmp_path, names)
    first, second = (tmp_path / f"disk{rank}" / "artifact" for rank in range(2))
    assert {path.relative_to(second).as_posix(): path.read_text() for path in second.rglob("*") if path.is_file()} == names
    assert all((first / name).stat().st_mtime_ns == (second / name).stat().st_mtime_ns for name in names)
