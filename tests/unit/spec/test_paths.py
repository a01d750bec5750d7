"""Local paths and hub ids."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.spec.world import errors, load


def job(source: str) -> str:
    return f"name: job\nmodel: {{source: owner/model}}\nstages:\n  - {{kind: sft, data: {{source: {source}}}}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "x.parquet").write_text("x", encoding="utf-8")
    (tmp_path / "jobs").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("./pairs.jsonl", "pairs.jsonl"),
        ("pairs.jsonl", "pairs.jsonl"),
        ("data", "data"),
        ("./jobs/../data/deep", "data/deep"),
    ],
)
def test_a_local_path_is_relative_to_the_job_file(folder: Path, written: str, resolved: str) -> None:
    assert load(job(written), folder=folder).stages[0].data.source == str(folder / resolved)


def test_a_path_above_the_job_file_and_an_absolute_one_are_found(folder: Path) -> None:
    for written in ("../pairs.jsonl", str(folder / "pairs.jsonl")):
        assert load(job(written), folder=folder / "jobs").stages[0].data.source == str(folder / "pairs.jsonl")


def test_the_home_folder_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert load(job("~/pairs.jsonl"), folder=folder / "jobs").stages[0].data.source == str(folder / "pairs.jsonl")


def test_a_relative_folder_still_gives_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load(job("pairs.jsonl"), folder=Path()).stages[0].data.source == str(folder / "pairs.jsonl")


@pytest.mark.parametrize("hub_id", ["owner/data", "squad", "Anthropic/hh-rlhf", "a.b-c_d/e", "python-docs"])
def test_a_hub_id_stays_as_it_is(folder: Path, hub_id: str) -> None:
    assert load(job(hub_id), folder=folder).stages[0].data.source == hub_id


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("./pears.jsonl", "does not exist"),
        ("no/such/file.csv", "does not exist"),
        ("./jobs", "holds no data file"),
        ("./pairs.jsonl/x", "cannot be read"),
        ("/dev/zero", "is neither a file nor a folder"),
        ("'http://169.254.169.254/x.jsonl'", "is a URL"),
        ("'file:///etc/passwd'", "is a URL"),
        ("a/b/c", "is neither a path that exists nor a Hugging Face id"),
        ("'a b'", "is neither a path that exists nor a Hugging Face id"),
        ("'$(id)'", "is neither a path that exists nor a Hugging Face id"),
        ("-rf", "is neither a path that exists nor a Hugging Face id"),
        (f"./{'x' * 300}.jsonl", "cannot be read"),
    ],
)
def test_what_is_neither_is_refused(folder: Path, written: str, says: str) -> None:
    found = errors(job(written), folder=folder)
    assert len(found) == 1
    assert found[0].startswith("E114 job.yaml:4:24 stages.sft.data.source: ")
    assert says in found[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(folder: Path) -> None:
    (folder / "pairs.jsonl").chmod(0)
    assert "may not be read" in errors(job("pairs.jsonl"), folder=folder)[0]


def test_a_hostfile_is_read_with_the_job(folder: Path) -> None:
    (folder / "hosts").write_text("w1 slots=8\nw1 slots=8\n", encoding="utf-8")
    found = errors(job("owner/data") + "cluster: {hostfile: hosts}\n", folder=folder)
    assert found == [f"E116 {folder / 'hosts'}:2:1 host w1 stands here and in line 1"]
