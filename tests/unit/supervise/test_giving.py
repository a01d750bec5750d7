"""Who has a run, and that it is given to a queue or a starter once, in every state that its folder and the queue can be in.

The queue is three programs that write down what they are told and say what a file holds; real SLURM is in tests/cluster.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.backends import mpi, registry, slurm
from launcher.errors import LauncherError
from launcher.rundir.events import append_event, read_events
from launcher.rundir.folder import RunDir, read_json, write_json
from launcher.supervise import asking, giving, queue
from launcher.supervise.giving import give
from launcher.supervise.holder import holder_of, note_starter
from launcher.supervise.lock import Owner, this_process

ELSEWHERE = Owner(pid=7, started_ticks=1, host="node1", boot="x")
OUTSIDE: dict[str, str] = {}
INSIDE = {"SLURM_JOB_ID": "12"}
SAID = 'echo "$(basename "$0") $*" >>"{folder}/asked"\nenv | grep ^SBATCH_ >>"{folder}/overruled"\n'
UNKNOWN = '{{ echo "Invalid job id" >&2; exit 1; }}'
PROGRAMS = {
    "squeue": 'cat "{folder}/queue"; case "$*" in *--jobs=*) [ -s "{folder}/queue" ] || ' + UNKNOWN + ";; esac",
    "sbatch": 'echo "12|PENDING||None|{run}" >"{folder}/queue"; [ ! -e "{folder}/slow" ] || exit 1; echo 12',
    "scancel": ': >"{folder}/queue"',
    "scontrol": "true",
    "sacct": 'cat "{folder}/accounts"',
}


@dataclass(frozen=True, slots=True)
class Fake:
    """What the queue says is in `folder`/queue."""

    folder: Path
    run: RunDir

    def says(self, state: str, job: str = "12") -> None:
        (self.folder / "queue").write_text(f"{job}|{state}|node1|None|{self.run.path}\n" if state else "")

    def asked(self, program: str) -> int:
        path = self.folder / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(line.startswith(f"{program} ") for line in lines)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake(tmp_path / "slurm", RunDir(tmp_path / "runs" / "job" / "one"))
    found.run.rendered.mkdir(parents=True)
    found.folder.mkdir()
    found.says("")
    for name, text in PROGRAMS.items():
        program = found.folder / name
        program.write_text("#!/bin/sh\n" + (SAID + text).format(folder=found.folder, run=found.run.path) + "\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return found


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_run_is_submitted_once_and_then_joined(fake: Fake) -> None:
    give(fake.run, registry.load_backend("slurm"), [], OUTSIDE)  # type: ignore[arg-type]
    assert read_json(fake.run.path / "slurm.json")["job"] == "12"
    for state in ("PENDING", "RUNNING"):
        fake.says(state)
        give(fake.run, slurm, ["--stage", "x"], OUTSIDE)  # type: ignore[arg-type]
    assert fake.asked("sbatch") == 1


def test_a_job_whose_number_was_lost_is_found_by_its_name(fake: Fake) -> None:
    fake.says("RUNNING", "99")
    give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    assert fake.asked("sbatch") == 0
    assert read_json(fake.run.path / "slurm.json")["job"] == "99"


def test_an_answer_of_sbatch_that_was_lost_was_one_all_the_same(fake: Fake) -> None:
    (fake.folder / "slow").touch()
    give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    assert read_json(fake.run.path / "slurm.json")["job"] == "12"


def test_a_job_that_is_over_or_forgotten_makes_room_for_the_next(fake: Fake) -> None:
    write_json(fake.run.path / "slurm.json", {"job": "11"})
    write_json(fake.run.path / "controller.json", asdict(ELSEWHERE))  # of a node that was lost with the job
    for state in ("TIMEOUT", ""):
        fake.says(state, "11")
        assert holder_of(fake.run) is None
        give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    assert fake.asked("sbatch") == 2


def test_accounts_are_asked_for_what_the_queue_has_forgotten(fake: Fake) -> None:
    assert queue.last_state(fake.run) is None  # a run that never had a job
    write_json(fake.run.path / "slurm.json", {"job": "12"})
    said = []
    for state in ("RUNNING", ""):
        fake.says(state)
        said += [queue.last_state(fake.run)]
    assert fake.asked("sacct") == 1
    (fake.folder / "accounts").write_text("12|TIMEOUT|node1|job.one\n")
    texts = [one.text() for one in (*said, queue.last_state(fake.run)) if one]
    assert texts == [
        "SLURM job 12: RUNNING on node1",
        "SLURM job 12: UNKNOWN (the queue has forgotten it)",  # without accounts sacct fails
        "SLURM job 12: TIMEOUT on node1",
    ]


def test_one_that_completes_is_waited_for(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(fake.run.path / "slurm.json", {"job": "11"})
    fake.says("COMPLETING", "11")
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        fake.says("COMPLETED", "11")

    monkeypatch.setattr(giving, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    assert (len(looks), fake.asked("sbatch")) == (1, 1)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_inside_an_allocation_a_run_of_the_queue_is_not_started_again(fake: Fake, state: str) -> None:
    write_json(fake.run.path / "slurm.json", {"job": "12"})
    fake.says(state)
    with pytest.raises(LauncherError, match=f"E507.*SLURM job 12: {state}"):
        give(fake.run, slurm, [], INSIDE)  # type: ignore[arg-type]


def test_what_runs_inside_an_allocation_is_not_submitted(fake: Fake) -> None:
    write_json(fake.run.path / "controller.json", asdict(ELSEWHERE))
    with pytest.raises(LauncherError, match=r"E507.*process 7 on node1 controls it"):
        give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    assert fake.asked("sbatch") == 0


def test_a_starter_takes_the_place_of_a_job_and_a_job_of_a_starter(fake: Fake) -> None:
    write_json(fake.run.path / "slurm.json", {"job": "11"})
    fake.says("")
    slurm.script(fake.run).write_text("sleep 60")
    started = give(fake.run, slurm, [], INSIDE)  # type: ignore[arg-type]
    assert not (fake.run.path / "slurm.json").exists()
    holder = holder_of(fake.run)
    assert holder is not None
    assert holder.starter is not None
    with pytest.raises(LauncherError, match=r"E507.*has started its nodes"):
        give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    started.end()
    while not started.over:
        pass
    assert holder_of(fake.run) is None
    give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    assert not (fake.run.path / "starter.json").exists()


def test_what_a_starter_of_this_host_started_has_ended_with_it(fake: Fake, sleeping: subprocess.Popen[bytes]) -> None:
    write_json(fake.run.path / "controller.json", asdict(ELSEWHERE))
    note_starter(fake.run, sleeping.pid)
    holder = holder_of(fake.run)
    assert holder is not None
    assert (holder.elsewhere, holder.controller) == (True, ELSEWHERE)
    sleeping.kill()
    sleeping.wait()
    assert holder_of(fake.run) is None
    write_json(fake.run.path / "starter.json", asdict(replace(ELSEWHERE, host="login2")))
    assert holder_of(fake.run) is not None  # of another host: only that one can tell
    with pytest.raises(LauncherError, match="E507"):
        give(fake.run, mpi, [], OUTSIDE)  # type: ignore[arg-type]


def test_a_stop_that_is_asked_for_is_forgotten_by_a_new_start_alone(fake: Fake) -> None:
    asking.ask_to_stop(fake.run)
    write_json(fake.run.path / "slurm.json", {"job": "12"})
    fake.says("RUNNING")
    give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    assert fake.run.stop_request.exists()
    fake.says("")
    give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    assert not fake.run.stop_request.exists()


def test_the_shell_does_not_overrule_the_script(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_JOB_NAME", "other")
    give(fake.run, slurm, [], OUTSIDE)  # type: ignore[arg-type]
    assert (fake.folder / "overruled").read_text() == ""


def test_a_waiting_job_is_taken_back_and_the_run_says_so(fake: Fake) -> None:
    write_json(fake.run.path / "slurm.json", {"job": "12"})
    fake.says("PENDING")
    asking.stop_elsewhere(fake.run)
    assert fake.asked("scancel") == 1
    assert [event["kind"] for event in read_events(fake.run.events)] == ["stop.asked", "run.stopped"]
    assert not fake.run.stop_request.exists()


def test_a_queue_that_does_not_answer_hides_no_controller(fake: Fake) -> None:
    write_json(fake.run.path / "slurm.json", {"job": "12"})
    write_json(fake.run.path / "controller.json", asdict(ELSEWHERE))
    (fake.folder / "squeue").write_text("#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2; exit 1\n")
    holder = holder_of(fake.run)
    assert holder is not None
    assert holder.text().splitlines() == [
        "squeue [E442] Unable to contact slurm controller",
        "process 7 on node1 controls it",
    ]


@pytest.mark.parametrize(
    ("events", "stop", "job", "said"),
    [
        (["run.started", "stage.left"], False, "12", "back into the queue"),
        (["run.started", "stage.finished"], False, "12", "back into the queue"),
        (["stage.finished", "run.started", "stage.kept"], False, "12", "nothing was finished or saved"),
        (["run.started", "stage.left"], True, "12", "the run is to stop"),
        (["run.started", "stage.left"], False, "11", "not the run's own"),
    ],
)
def test_a_job_goes_back_into_the_queue_where_it_is_the_runs_and_has_come_further(
    fake: Fake, events: list[str], stop: bool, job: str, said: str
) -> None:
    write_json(fake.run.path / "slurm.json", {"job": job})
    for kind in events:
        append_event(fake.run.events, kind)
    if stop:
        asking.ask_to_stop(fake.run)
    assert said in queue.go_again(fake.run, INSIDE)
    assert fake.asked("scontrol") == (said == "back into the queue")


def test_a_controller_of_this_host_is_reached_by_a_signal(fake: Fake) -> None:
    write_json(fake.run.path / "controller.json", asdict(this_process()))
    holder = holder_of(fake.run)
    assert holder is not None
    assert not holder.elsewhere
    (fake.run.path / "controller.json").unlink()
    assert holder_of(fake.run) is None
