"""Files between the controller and a host with a disk of its own, here and without ssh: what arrives, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import Problem
from launcher.hosts.files.cargo import Away, Cargo
from launcher.hosts.files.disk import claim
from launcher.hosts.files.freight import Carried, fetch, ship
from launcher.hosts.files.parcels import Place, Strange, run_place
from launcher.rundir.folder import RunDir

AGENT = (sys.executable, "-m", "launcher.hosts", "agent")
STRANGE = (
    *("../../etc/passwd", "/etc/passwd", "job/id/../../../x", "job/id/./x", "job/id//x", "job/id/", "job/id", ".cache", ""),
    *("job/other/x", ".ssh/authorized_keys", "job/id/.work/x", ".cache/../.ssh/x", "job/id/a\0b", "job/id/\ud800", "job/idx/y"),
)


@pytest.fixture
def here(tmp_path):
    """The run folder of the controller."""
    run = RunDir(tmp_path / "here" / "job" / "id")
    run.stage("sft").path.mkdir(parents=True)
    return run


@pytest.fixture
def there(tmp_path):
    """The same on the host's disk."""
    return RunDir(tmp_path / "there" / "job" / "id")


@pytest.fixture
def agents(tmp_path):
    """An agent that finds another disk in the place of the controller's runs folder, as on a host."""
    script = f"""
import sys
from launcher.hosts.fleet import agent
from launcher.hosts.files import porter
real = porter.run_place
porter.run_place = lambda root, run, **how: real({str(tmp_path / "there")!r}, run, **how)
sys.exit(agent.serve())
"""
    return {"node2": (sys.executable, "-c", script)}


def talk(*lines: object, raw: bytes = b"") -> tuple[list[dict[str, object]], int]:
    """What the agent of this machine says to these lines, and its exit code."""
    said = b"".join(json.dumps(line).encode() + b"\n" for line in lines) + raw
    done = subprocess.run(AGENT, input=said, capture_output=True, check=False, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_leads_elsewhere_is_refused(name, tmp_path):
    with pytest.raises(Strange):
        Place(tmp_path, (".cache", "job/id")).path(name)


def test_a_name_behind_a_link_is_refused(tmp_path):
    (tmp_path / "job" / "id").mkdir(parents=True)
    (tmp_path / "job" / "id" / "out").symlink_to("/etc")
    for name in ("job/id/out", "job/id/out/passwd"):
        with pytest.raises(Strange, match="through a link"):
            Place(tmp_path, ("job/id",)).path(name)


@pytest.mark.parametrize(
    ("root", "run", "stage"),
    [
        ("runs", "job/id", None),
        ("/", "a/b/c", None),
        ("/", "a", None),
        ("/", "../x", None),
        ("/", "job/id", "../x"),
        ("/", "job/id", ""),
    ],
)
def test_what_names_no_run_is_refused(root, run, stage):
    with pytest.raises(Strange):
        run_place(root, run, stage=stage)


def test_the_folder_in_which_ranks_meet_is_a_run_too(tmp_path):
    place = run_place(str(tmp_path), ".doctor/meeting", stage="meet")
    assert place.path(".doctor/meeting/stages/meet/result.json") == tmp_path / ".doctor/meeting/stages/meet/result.json"


def test_hostile_names_are_refused_before_anything_is_written(tmp_path):
    header = {"do": "take", "root": str(tmp_path / "runs"), "run": "job/id", "trees": []}
    for name in STRANGE[:-2]:
        said, code = talk(header, {"files": [[name, 1, 1]]}, raw=b"x")
        assert (said[0]["kind"], code) == ("refused", 2), name
    said, _ = talk({**header, "trees": ["../other"]}, {"end": True})
    assert said[0]["kind"] == "refused"
    said, _ = talk({**header, "do": "give", "stage": "sft"}, {"wants": ["job/id/stages/sft/../../job.json"]})
    assert said[0]["kind"] == "refused"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "told", [None, [["job/id/a", -1, 1]], [["job/id/a", 1]], [[1, 1, 1]], [["job/id/a", True, 1]], "job/id/a"]
)
def test_a_list_of_files_that_is_none_is_refused(told, tmp_path):
    said, code = talk({"do": "take", "root": str(tmp_path), "run": "job/id", "trees": []}, {"files": told})
    assert (said[0]["kind"], code) == ("refused", 2)


def test_a_connection_that_ends_in_the_middle_leaves_nothing(tmp_path):
    header = {"do": "take", "root": str(tmp_path), "run": "job/id", "trees": []}
    said, code = talk(header, {"files": [["job/id/a", 3, 1], ["job/id/b", 100, 1]]}, raw=b"abc" + b"x" * 50)
    assert (said, code) == ([{"kind": "lacks", "which": [0, 1]}], 4)
    assert files(tmp_path) == {"job/id/a": b"abc"}


def test_more_than_the_disk_holds_is_refused(tmp_path):
    header = {"do": "take", "root": str(tmp_path / "runs"), "run": "job/id", "trees": []}
    said, code = talk(header, {"files": [["job/id/a", 2**60, 1]]})
    assert (said[0]["kind"], said[0]["code"], code) == ("refused", "E513", 5)
    assert "are free" in str(said[0]["what"])


def test_only_what_a_host_lacks_is_carried_and_what_is_too_much_there_goes(here, there, agents):
    names = {
        f"job/id/stages/sft/{name}": text
        for name, text in {"a.json": b"1", "checkpoints/step2/rank0.x": b"22", "empty": b""}.items()
    }
    for name, text in names.items():
        path = here.path.parent.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    old = there.stage("sft").path / "checkpoints" / "step1" / "rank0.x"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    cargo = Cargo(files={name: here.path.parent.parent / name for name in names}, trees=("job/id/stages/sft",))
    assert asyncio.run(ship(agents, here, cargo)) == {"node2": Carried(files=3, num_bytes=3)}
    assert files(there.path.parent.parent) == names
    assert asyncio.run(ship(agents, here, cargo)) == {"node2": Carried(files=0, num_bytes=0)}
    (there.stage("sft").path / "a.json").write_text("2")
    assert asyncio.run(ship(agents, here, cargo)) == {"node2": Carried(files=1, num_bytes=1)}


def test_what_ranks_wrote_comes_back_and_old_checkpoints_go(here, there, agents):
    claim(there, "sft", "a1", "node2")
    stage = there.stage("sft").path
    for name in ("metrics.jsonl", "checkpoints/step4/manifest.json", "checkpoints/.work/x", "done/rank0.json", "artifact/m"):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text(name)
    (here.stage("sft").checkpoints / "step2").mkdir(parents=True)
    away = Away(attempt="a1", disks={"node2": (0, 1)}, done={"done/rank0.json": "{}"})
    fetched = asyncio.run(fetch(agents, here, "sft", away))
    assert (fetched.complete, fetched.hosts) == (True, {"node2": Carried(files=3, num_bytes=54)})
    assert sorted(files(here.stage("sft").path)) == ["artifact/m", "checkpoints/step4/manifest.json", "metrics.jsonl"]
    assert not (here.stage("sft").checkpoints / "step2").exists()
    assert (here.stage("sft").path / "metrics.jsonl").stat().st_mtime_ns == (stage / "metrics.jsonl").stat().st_mtime_ns


def test_nothing_is_taken_from_a_disk_that_saw_nothing_of_the_attempt(here, there, agents):
    claim(there, "sft", "a0", "node2")
    (there.stage("sft").path / "metrics.jsonl").write_text("of another attempt")
    (here.stage("sft").checkpoints / "step2").mkdir(parents=True)
    fetched = asyncio.run(fetch(agents, here, "sft", Away(attempt="a1", disks={"node2": (0,)})))
    assert fetched.complete
    assert files(here.stage("sft").path) == {}
    assert (here.stage("sft").checkpoints / "step2").exists()


def test_a_host_that_is_no_longer_in_the_job_keeps_what_it_has(here, agents):
    fetched = asyncio.run(fetch(agents, here, "sft", Away(attempt="a1", disks={"node9": (0,)})))
    assert (fetched.complete, fetched.hosts) == (False, {})


def test_a_host_that_names_other_files_is_refused(here, tmp_path):
    told = [{"kind": "files", "files": [["job/id/stages/sft/../../../../x", 1, 1]]}, {"kind": "listed", "ours": True}]
    script = "".join(json.dumps(one) + "\n" for one in told)
    agents = {"node2": (sys.executable, "-S", "-c", f"import sys; sys.stdin.readline(); print({script!r}, end='')")}
    fetched = asyncio.run(fetch(agents, here, "sft", Away(attempt="a1", disks={"node2": (0,)})))
    [problem] = fetched.problems
    assert (problem.code, problem.where) == ("E420", "node2")
    assert "is not a file of this run" in problem.what
    assert not (tmp_path / "x").exists()


def test_a_disk_that_takes_no_more_is_told_with_its_host(here, there, agents):
    there.path.parent.mkdir(parents=True)
    there.path.write_text("a file in the way")
    (here.path / "job.json").write_text("{}")
    cargo = Cargo(files={"job/id/job.json": here.path / "job.json"}, trees=())
    sent = asyncio.run(ship(agents, here, cargo))
    problem = sent["node2"]
    assert isinstance(problem, Problem)
    assert (problem.code, problem.where) == ("E513", "node2")


def test_the_first_to_claim_a_disk_has_it_for_the_attempt(there):
    assert [claim(there, "sft", "a1", name) for name in ("node2", "node3", "node2")] == ["node2", "node2", "node2"]
    assert claim(there, "sft", "a2", "node3") == "node3"
    assert sorted(path.name for path in there.stage("sft").path.iterdir()) == [".disk-a2"]
    assert oct(os.stat(there.path).st_mode & 0o777) == "0o700"
