"""A run that a node elsewhere controls, judged and stopped by what lies in its folder."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from launcher.errors import LauncherError, Problem
from launcher.rundir.events import append_event
from launcher.rundir.folder import RunDir, write_json
from launcher.supervise import asking, stop
from launcher.supervise.lock import Owner
from launcher.supervise.outside import ending_of
from launcher.supervise.stop import REQUEST, StopFlag
from launcher.supervise.tail import tail_of

REFUSED = Problem(code="E441", where="node 1", what="3 nodes", hint="start 2").as_dict()
FAILED = Problem(code="E501", where="rank 1", what="killed by SIGKILL", hint="resume").as_dict()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def elsewhere() -> Owner:
    return Owner(pid=7, started_ticks=1, host="node1", boot="x")


@pytest.mark.parametrize(
    ("events", "state", "codes"),
    [
        ([("run.started", {}), ("run.finished", {})], "done", []),
        ([("run.started", {}), ("run.failed", {"problems": [FAILED], "stage": "sft"})], "failed", ["E501"]),
        ([("run.started", {}), ("run.stopped", {"signal": "SIGUSR1"})], "stopped", []),
        ([("run.started", {}), ("run.stopped", {}), ("run.started", {}), ("run.finished", {})], "done", []),
        ([("node.refused", {"problems": [REFUSED]}), ("node.refused", {"problems": [REFUSED]})], "failed", ["E441"]),
        ([("run.started", {}), ("run.finished", {}), ("node.refused", {"problems": [REFUSED]})], "done", []),
        ([("node.refused", {"problems": [REFUSED]}), ("run.started", {}), ("run.stopped", {})], "failed", ["E441"]),
        ([("run.started", {}), ("node.refused", {"problems": [REFUSED]})], "failed", ["E441"]),
    ],
)
def test_the_last_word_of_node_0_is_how_a_run_ended(
    run: RunDir, events: list[tuple[str, dict]], state: str, codes: list[str]
) -> None:
    append_event(run.events, "run.failed", problems=[FAILED])  # of the attempt before
    for kind, fields in events:
        append_event(run.events, kind, **fields)
    ending = ending_of(run, seen=1)
    assert ending is not None
    assert (ending.state, [problem.code for problem in ending.problems]) == (state, codes)


@pytest.mark.parametrize("events", [[], ["run.started"], ["run.stopped", "run.started"]])
def test_a_run_that_was_begun_and_not_ended_has_no_last_word(run: RunDir, events: list[str]) -> None:
    for kind in events:
        append_event(run.events, kind)
    assert ending_of(run, seen=0) is None


def test_a_stop_is_asked_for_by_a_file_and_said_so(run: RunDir) -> None:
    flag = StopFlag(request=run.stop_request)
    assert not flag.asked
    asking.ask_to_stop(run)
    later = StopFlag(request=run.stop_request)
    assert (later.asked, later.hard, later.signal_name) == (True, False, REQUEST)
    asking.forget_request(run)
    assert not StopFlag(request=run.stop_request).asked
    assert later.asked


def test_a_file_that_says_now_is_the_second_request_also_behind_one_that_did_not(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "LOOK_S", 0.0)
    flag = StopFlag(request=run.stop_request)
    asking.ask_to_stop(run)
    assert (flag.asked, flag.hard) == (True, False)
    asking.ask_to_stop(run, now=True)
    assert (flag.asked, flag.hard, flag.signal_name) == (True, True, REQUEST)
    run.stop_request.write_text("{")
    assert StopFlag(request=run.stop_request).asked


def test_a_controller_elsewhere_that_ends_when_asked_is_waited_for(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(run.path / "controller.json", asdict(elsewhere()))
    monkeypatch.setattr(asking, "LOOK_S", 0.05)
    hears = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)\nos.unlink(sys.argv[2])"
    with subprocess.Popen([sys.executable, "-c", hears, str(run.stop_request), str(run.path / "controller.json")]):
        asking.stop_elsewhere(run)
    assert not run.stop_request.exists()


def test_one_that_does_not_is_told_with_what_to_do(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(run.path / "controller.json", asdict(elsewhere()))
    monkeypatch.setattr(asking, "STOP_WAIT_S", 0.2)
    with pytest.raises(LauncherError, match=r"E507.*process 7 on node1 controls it, and did not stop"):
        asking.stop_elsewhere(run)
    assert not run.stop_request.exists()


def test_only_what_is_appended_from_now_on_is_told(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.controller_log.write_text("before\n")
    tail = tail_of(run.controller_log)
    with run.controller_log.open("a") as file:
        file.write("now\n")
    tail.tell()
    tail.tell()
    assert capsys.readouterr().err == "now\n"


def test_a_character_that_comes_in_two_parts_is_told_whole(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    tail = tail_of(run.controller_log)
    for part in ("ä".encode()[:1], "ä".encode()[1:] + b"\n"):
        with run.controller_log.open("ab") as file:
            file.write(part)
        tail.tell()
    assert capsys.readouterr().err == "ä\n"
