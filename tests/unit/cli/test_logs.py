"""Which log `launcher logs` shows, and that --follow waits for one that is not begun yet."""

from __future__ import annotations

import threading

import pytest

from launcher.cli.main import main
from launcher.rundir.events import append_event
from launcher.rundir.folder import RunDir, write_atomic, write_json
from launcher.supervise.lock import controlling


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDir:
    monkeypatch.setenv("LAUNCHER_RUNS", str(tmp_path))
    run = RunDir(tmp_path / "job" / "20261124-000000-abcdef")
    write_json(
        run.plan_json, {"job": "job", "stages": [{"name": name, "kind": name, "world": 2} for name in ("pretrain", "sft")]}
    )
    write_json(run.job_json, {"stages": []})
    write_atomic(run.path / "prepare" / "log.txt", "prepared\n")
    return run


def shown(capsys, *words: str) -> str:
    assert main(["logs", *words]) == 0
    return capsys.readouterr().out


def test_before_any_stage_the_log_is_that_of_prepare(run, capsys):
    assert shown(capsys) == "prepared\n"


def test_the_stage_that_the_run_is_at_is_shown_by_default(run, capsys):
    for stage in ("pretrain", "sft"):
        append_event(run.events, "stage.launched", stage=stage)
        write_atomic(run.stage(stage).rank_log(0), f"{stage} of rank 0\n")
        assert shown(capsys) == f"{stage} of rank 0\n"
        append_event(run.events, "stage.finished", stage=stage)
    assert shown(capsys) == "sft of rank 0\n"
    assert shown(capsys, "job", "pretrain") == "pretrain of rank 0\n"


def test_the_launchers_log_stands_in_where_no_rank_has_begun(run, capsys):
    write_atomic(run.stage("sft").logs / "launcher.log", "no such module\n")
    assert shown(capsys, "job", "sft") == "no such module\n"


@pytest.mark.parametrize("words", [("job", "dpo"), ("job", "sft"), ("job", "prepare", "--rank", "x"), ("job", "dpo", "-f")])
def test_a_log_that_is_not_there_is_an_error(run, capsys, words):
    assert main(["logs", *words]) in (2, 5)


def test_follow_waits_for_a_log_and_ends_with_the_run(run, capsys):
    held, end = threading.Event(), threading.Event()

    def control() -> None:
        with controlling(run):
            held.set()
            write_atomic(run.stage("sft").rank_log(0), "step 1\n")
            end.wait(5)
            with run.stage("sft").rank_log(0).open("a") as file:
                file.write("step 2\n")

    thread = threading.Thread(target=control)
    thread.start()
    held.wait(5)
    threading.Timer(0.5, end.set).start()
    assert shown(capsys, "job", "sft", "-f") == "step 1\nstep 2\n"
    thread.join()


def test_escapes_in_a_log_do_not_reach_the_terminal(run, capsys):
    write_atomic(run.stage("sft").rank_log(0), "\x1b[31mred\n")
    assert shown(capsys, "job", "sft") == "\\x1b[31mred\n"
