"""One controller per run, on real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from launcher.errors import LauncherError
from launcher.rundir.folder import RunDir, read_json, write_json
from launcher.supervise.lock import controlling, find_owner, forget_other_hosts, this_process

HOLD = """
import sys
from launcher.rundir.folder import RunDir
from launcher.supervise.lock import controlling
from launcher.errors import LauncherError
from pathlib import Path
try:
    with controlling(RunDir(Path(sys.argv[1]))):
        print("held", flush=True)
        sys.stdin.read()
except LauncherError as error:
    print(error.problems[0].code, flush=True)
"""


def holder(run: RunDir) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", HOLD, str(run.path)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_run_is_free_before_and_after_it_is_held(run):
    assert find_owner(run) is None
    with controlling(run):
        assert find_owner(run) == this_process()
    assert find_owner(run) is None


def test_a_second_controller_is_refused_with_the_owners_pid(run):
    process = holder(run)
    try:
        assert first_line(process) == "held"
        with pytest.raises(LauncherError) as caught, controlling(run):
            pass
        assert caught.value.problems[0].code == "E507"
        assert str(process.pid) in caught.value.text()
        assert caught.value.exit_code == 5
    finally:
        process.communicate()
    assert find_owner(run) is None


def test_the_lock_of_a_killed_controller_is_taken_over(run):
    process = holder(run)
    assert first_line(process) == "held"
    process.kill()
    process.communicate()
    with controlling(run):
        assert find_owner(run) == this_process()


def test_the_pid_of_a_dead_controller_used_by_another_process_is_stale(run):
    write_json(run.path / "controller.json", asdict(replace(this_process(), started_ticks=1)))
    assert find_owner(run) is None


def test_a_lock_from_before_a_reboot_is_stale(run):
    write_json(run.path / "controller.json", asdict(replace(this_process(), boot="another")))
    assert find_owner(run) is None


def test_a_lock_of_another_host_is_never_taken_over(run):
    write_json(run.path / "controller.json", asdict(replace(this_process(), host="node-7")))
    with pytest.raises(LauncherError) as caught, controlling(run):
        pass
    assert "node-7" in caught.value.text()
    assert read_json(run.path / "controller.json")["host"] == "node-7"


def test_where_a_scheduler_starts_one_controller_a_name_of_another_host_is_forgotten(run):
    write_json(run.path / "controller.json", asdict(replace(this_process(), host="pod-0-of-before")))
    forget_other_hosts(run)
    with controlling(run):
        forget_other_hosts(run)
        assert find_owner(run) == this_process()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "started_ticks": 1, "host": "a", "boot": "b", "more": 1}']
)
def test_a_torn_lock_file_is_stale(run, text):
    (run.path / "controller.json").write_text(text)
    assert find_owner(run) is None


def test_of_many_that_start_at_once_exactly_one_holds_the_run(run):
    processes = [holder(run) for _ in range(5)]
    try:
        lines = sorted(first_line(process) for process in processes)
        assert lines == ["E507"] * 4 + ["held"]
    finally:
        for process in processes:
            process.communicate()
    assert os.listdir(run.path) == [".controller.guard"]
