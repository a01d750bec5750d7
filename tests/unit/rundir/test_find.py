"""RUN as the user writes it."""

from __future__ import annotations

import pytest

from launcher.errors import LauncherError
from launcher.rundir.find import find_run, find_runs
from launcher.rundir.folder import write_json


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for job, run_id in (("b", "20260101-000000-aaaaaa"), ("a", "20260102-000000-bbbbbb"), ("b", "20260103-000000-cccccc")):
        write_json(root / job / run_id / "job.json", {})
    (root / "b" / "20260104-000000-dddddd").mkdir()  # no job.json: it never became a run
    (root / ".cache" / "x").mkdir(parents=True)
    return root


def name_of(text, root):
    run = find_run(text, root)
    return f"{run.path.parent.name}/{run.path.name[-6:]}"


def test_nothing_means_the_newest_run_of_all(runs):
    assert name_of(None, runs) == "b/cccccc"


def test_a_job_name_means_its_newest_run(runs):
    assert name_of("a", runs) == "a/bbbbbb"
    assert name_of("b", runs) == "b/cccccc"


def test_a_run_id_means_that_run(runs):
    assert name_of("20260101-000000-aaaaaa", runs) == "b/aaaaaa"


def test_a_path_means_that_folder_wherever_it_is(runs, tmp_path):
    assert name_of(str(runs / "b" / "20260101-000000-aaaaaa"), tmp_path / "elsewhere") == "b/aaaaaa"


@pytest.mark.parametrize("text", [None, "b", "20260103-000000-cccccc"])
def test_a_run_reached_through_a_link_has_the_path_that_its_processes_carry(runs, tmp_path, text):
    (tmp_path / "link").symlink_to(runs)
    assert find_run(text, tmp_path / "link").path == (runs / "b" / "20260103-000000-cccccc").resolve()


def test_runs_are_listed_oldest_first_and_only_runs(runs):
    assert [run.path.name[-6:] for run in find_runs(runs)] == ["aaaaaa", "bbbbbb", "cccccc"]


@pytest.mark.parametrize("text", ["c", "../b", "", "20260104-000000-dddddd", "b/../a"])
def test_what_names_no_run_is_refused_with_the_jobs_that_are_there(runs, text):
    with pytest.raises(LauncherError) as caught:
        find_run(text, runs)
    assert caught.value.problems[0].code == "E113"
    assert "a, b" in caught.value.text()


def test_a_missing_runs_folder_is_no_crash(tmp_path):
    with pytest.raises(LauncherError) as caught:
        find_run(None, tmp_path / "none")
    assert "launcher run JOB" in caught.value.text()
