"""The chain from stage to stage, on real processes that write what the real stages write, in milliseconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.backends import local
from launcher.backends.request import TOKEN, LaunchRequest
from launcher.plan.make import make_plan
from launcher.rundir.events import read_events
from launcher.rundir.folder import RunDir, read_json, write_json
from launcher.spec.load import open_job_text
from launcher.supervise import chain
from launcher.supervise.chain import Chain, Ending
from launcher.supervise.create import Planned, write_run
from launcher.supervise.facts import detect_machine, find_shape
from launcher.supervise.journal import Journal
from launcher.supervise.stop import StopFlag

JOB = """
name: job
model: {new: {family: llama, layers: 2, hidden: 64, heads: 4, positions: 256}, tokenizer: {train: {vocab: 512}}}
batch: {global: 8}
stages:
  - {kind: pretrain, data: {source: python-docs, max_tokens: 64}, steps: 5}
  - {kind: sft, data: {source: python-docs, max_tokens: 64}, steps: 5}
  - {kind: reward, data: {source: python-docs, max_tokens: 64}, steps: 5, gate: {accuracy: 0.6}}
"""

PREPARE = """
import json, sys
from pathlib import Path
from launcher.rundir.folder import RunDir, read_json, write_json, write_atomic
run = RunDir(Path(sys.argv[1]))
for stage in read_json(run.job_json)["stages"]:
    write_json(run.stage(stage["kind"]).prepared, {"fingerprint": "data of " + stage["kind"]})
write_atomic(run.base / "model" / "model.safetensors", "base")
write_json(run.path / "prepare" / "done.json", {"t": 0})
"""

# What a stage of two ranks leaves; FAULT names a stage and what goes wrong in it.
STAGE = """
import os, signal, sys, time
from pathlib import Path
from launcher.rundir.artifact import write_manifest
from launcher.rundir.folder import RunDir, read_json, write_atomic, write_json
from launcher.rundir.inputs import stage_inputs
from launcher.rundir.order import read_order
run, name = RunDir(Path(sys.argv[1])), sys.argv[2]
folder, order = run.stage(name), read_order(run.order(name))
faulty, _, fault = os.environ.get("FAULT", "").partition(":")
fault = fault if faulty == name else ""
inputs = stage_inputs(run, read_json(run.job_json), order)
if fault == "kill after a checkpoint":
    write_atomic(folder.checkpoints / "step3" / "weights", "w")
    write_manifest(
        folder.checkpoints / "step3", {"format": 2, "step": 3, "inputs": inputs, "precision": order.precision}
    )
if fault.startswith("leave"):
    rank = int(os.environ.get("RANK", "-1"))
    if rank < 0:  # the launcher's part: starts one rank that tells for both
        import subprocess
        env = {**os.environ, "RANK": "0", "LOCAL_RANK": "0"}
        sys.exit(subprocess.run([sys.executable, "-c", sys.argv[3], *sys.argv[1:]], env=env).returncode)
    write_json(folder.listening, {})
    while signal.SIGUSR1 not in signal.sigpending():
        time.sleep(0.02)
    if fault == "leave with a full disk":
        problem = {"code": "E513", "where": "", "what": "the disk takes no more", "hint": ""}
        write_json(folder.problem(0), {"t": time.time(), "problems": [problem]})
        sys.exit(5)
    if fault != "leave by finishing":
        write_atomic(folder.checkpoints / "step3" / "weights", "w")
        write_manifest(
            folder.checkpoints / "step3", {"format": 2, "step": 3, "inputs": inputs, "precision": order.precision}
        )
        for rank in range(order.world):
            write_json(folder.left(rank), {"world": order.world, "step": 3})
        sys.exit(0)
if fault.startswith("kill"):
    os.kill(os.getpid(), signal.SIGKILL)
if fault == "hang":
    time.sleep(60)
if fault == "port" and not (run.path / "tried").exists():
    (run.path / "tried").touch()
    problem = {"code": "E901", "where": "", "what": "DistNetworkError: EADDRINUSE", "hint": ""}
    write_json(folder.problem(0), {"t": time.time(), "problems": [problem]})
    sys.exit(1)
write_atomic(folder.artifact / "model.safetensors", "weights of " + name)
write_manifest(folder.artifact, {"inputs": "others" if fault == "stale" else inputs})
if fault == "tamper":
    (folder.artifact / "model.safetensors").write_text("w")
write_json(folder.result, {"after": {"accuracy": 0.7}})
for rank in range(order.world):
    write_json(folder.done(rank), {"world": order.world})
"""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """The local backend, with small programs in place of the stages."""

    def request(stage: str, code: str, run: RunDir, world: int) -> LaunchRequest:
        argv = (sys.executable, "-c", code, str(run.path), stage, code)
        return LaunchRequest(stage=stage, argv=argv, env=((TOKEN, str(run.path)),), world=world)

    monkeypatch.setattr(local, "prepare_request", lambda job, run: request("prepare", PREPARE, run, 1))
    monkeypatch.setattr(
        local, "stage_request", lambda job, plan, run, stage, *, port: request(stage, STAGE, run, plan.stage(stage).world)
    )


@pytest.fixture
def walk(run: RunDir, backend: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Plans the job anew and walks its chain; overrides as --set, `fault` as STAGE understands it."""

    def go(*overrides: str, fault: str = "", only: str | None = None, stop: StopFlag | None = None) -> Ending:
        monkeypatch.setenv("FAULT", fault)
        loaded = open_job_text(JOB, file_name="job.yaml", folder=tmp_path, overrides=overrides)
        machine = detect_machine(loaded.job, runs_root=tmp_path, environ={})
        plan = make_plan(loaded.job, machine=machine, shape=find_shape(loaded.job), places=loaded.places)
        planned = Planned(job=loaded.job, job_text=loaded.text, plan=plan)
        write_run(run, planned)
        chain = Chain(run, planned, Journal(run, quiet=True), stop or StopFlag())
        chain.end_leftovers()
        return chain.walk(only)

    return go


def stage_events(run: RunDir) -> list[str]:
    """`sft started` and so on, of the last attempt."""
    events = list(read_events(run.events))
    last = max(number for number, event in enumerate(events) if event["kind"] == "run.started")
    shown = ("stage.started", "stage.resumed", "stage.kept", "stage.finished", "stage.failed")
    return [f"{event['stage']} {str(event['kind']).split('.')[1]}" for event in events[last:] if event["kind"] in shown]


def codes(ending: Ending) -> list[str]:
    return [problem.code for problem in ending.problems]


def test_a_chain_runs_every_stage_once_and_then_keeps_all_of_them(run, walk):
    assert walk().state == "done"
    assert stage_events(run) == [f"{name} {what}" for name in ("pretrain", "sft", "reward") for what in ("started", "finished")]
    assert walk().state == "done"
    assert stage_events(run) == ["pretrain kept", "sft kept", "reward kept"]


def test_a_killed_stage_fails_the_run_and_resume_redoes_only_it(run, walk):
    ending = walk(fault="sft:kill")
    assert (ending.state, ending.stage, codes(ending)) == ("failed", "sft", ["E503"])
    assert walk().state == "done"
    assert stage_events(run) == ["pretrain kept", "sft started", "sft finished", "reward started", "reward finished"]


def test_a_killed_stage_with_a_checkpoint_is_resumed_from_it(run, walk):
    walk(fault="sft:kill after a checkpoint")
    assert walk().state == "done"
    assert "sft resumed" in stage_events(run)
    assert (run.stage("sft").checkpoints / "step3").is_dir()


def test_a_changed_setting_redoes_its_stage_and_those_after_it_and_keeps_the_old_result(run, walk):
    walk()
    ending = walk("stages.sft.lr=1e-3")
    assert ending.state == "done"
    assert stage_events(run)[0] == "pretrain kept"
    assert "sft started" in stage_events(run)
    assert (run.path / "stages" / ".earlier" / "sft-1" / "artifact" / "model.safetensors").is_file()


def test_only_stages_whose_inputs_changed_are_redone(run, walk):
    """The new sft artifact has another manifest (its inputs are in it), so the reward model stands on another parent."""
    walk()
    before = read_json(run.stage("pretrain").artifact / "manifest.json")
    walk("stages.reward.lr=1e-3")
    assert stage_events(run) == ["pretrain kept", "sft kept", "reward started", "reward finished"]
    assert read_json(run.stage("pretrain").artifact / "manifest.json") == before


def test_a_tampered_artifact_is_named_and_nothing_starts_on_it(run, walk):
    walk(fault="reward:kill")
    (run.stage("sft").artifact / "model.safetensors").write_text("weights of sfT")
    ending = walk()
    assert (ending.state, codes(ending)) == ("failed", ["E505"])
    assert ending.problems[0].where.endswith("stages/sft/artifact/model.safetensors")
    assert stage_events(run) == ["pretrain kept"]


def test_a_removed_artifact_is_made_again(run, walk):
    walk(fault="reward:kill")
    (run.stage("sft").artifact / "manifest.json").unlink()
    (run.stage("sft").artifact / "model.safetensors").unlink()
    run.stage("sft").artifact.rmdir()
    assert walk().state == "done"
    assert "sft started" in stage_events(run)


def test_an_artifact_that_is_damaged_when_it_is_handed_on_fails_its_stage(run, walk):
    ending = walk(fault="sft:tamper")
    assert (ending.stage, codes(ending)) == ("sft", ["E505"])


def test_an_artifact_of_other_inputs_fails_its_stage(run, walk):
    ending = walk(fault="sft:stale")
    assert (ending.stage, codes(ending)) == ("sft", ["E505"])


def test_a_gate_that_is_raised_holds_a_stage_that_was_kept(run, walk):
    walk()
    ending = walk("stages.reward.gate.accuracy=0.9")
    assert (ending.state, codes(ending)) == ("failed", ["E506"])
    assert "0.700" in ending.problems[0].what
    assert walk("stages.reward.gate.accuracy=0.65").state == "done"
    assert stage_events(run)[-1] == "reward kept"


def test_one_stage_alone_needs_what_it_starts_from(run, walk):
    ending = walk(only="sft")
    assert codes(ending) == ["E509"]
    assert walk(only="pretrain").state == "done"
    assert walk(only="sft").state == "done"
    assert not run.stage("reward").artifact.exists()


def test_a_port_taken_between_test_and_use_is_tried_again(run, walk):
    assert walk(fault="sft:port").state == "done"
    launched = [event for event in read_events(run.events) if event["kind"] == "stage.launched" and event["stage"] == "sft"]
    assert len(launched) == 2


def test_a_port_that_the_job_names_is_not_tried_again(run, walk, monkeypatch):
    """Another attempt would be on the same one."""
    monkeypatch.setattr(chain, "RENDERED", ("local",))
    ending = walk(fault="sft:port")
    assert (ending.state, ending.stage) == ("failed", "sft")
    launched = [event for event in read_events(run.events) if event["kind"] == "stage.launched" and event["stage"] == "sft"]
    assert len(launched) == 1


def test_a_stop_ends_the_chain_and_resume_goes_on(run, walk):
    stop = StopFlag()
    threading.Timer(3.0, stop.ask, [signal.SIGTERM]).start()
    ending = walk(fault="sft:hang", stop=stop)
    assert (ending.state, ending.stage, ending.signal) == ("stopped", "sft", "SIGTERM")
    assert walk().state == "done"
    assert stage_events(run)[0] == "pretrain kept"


def stop_when_listening(run: RunDir, name: str) -> StopFlag:
    stop = StopFlag()

    def ask() -> None:
        while not run.stage(name).listening.exists():
            time.sleep(0.02)
        stop.ask(signal.SIGUSR1)

    threading.Thread(target=ask, daemon=True).start()
    return stop


def test_a_stop_behind_a_checkpoint_is_told_with_its_step_and_resume_goes_on_from_it(run, walk):
    ending = walk(fault="sft:leave", stop=stop_when_listening(run, "sft"))
    assert (ending.state, ending.stage, ending.step, ending.signal) == ("stopped", "sft", 3, "SIGUSR1")
    told = {str(event["kind"]): event for event in read_events(run.events)}
    assert told["stage.left"]["step"] == told["run.stopped"]["step"] == 3
    assert "rank.problem" not in told
    assert walk().state == "done"
    assert stage_events(run)[1] == "sft resumed"


def test_a_stage_that_finishes_instead_is_done_and_the_chain_stops_behind_it(run, walk):
    ending = walk(fault="sft:leave by finishing", stop=stop_when_listening(run, "sft"))
    assert (ending.state, ending.step) == ("stopped", None)
    assert stage_events(run)[-2] == "sft finished"
    assert walk(fault="reward:leave by finishing", stop=stop_when_listening(run, "reward")).state == "done"


def test_a_checkpoint_that_cannot_be_written_on_leaving_is_told(run, walk):
    ending = walk(fault="sft:leave with a full disk", stop=stop_when_listening(run, "sft"))
    assert (ending.state, ending.step) == ("stopped", None)
    [told] = [event for event in read_events(run.events) if event["kind"] == "stage.unsaved"]
    assert "[E513] the disk takes no more" in str(told["reason"])


def test_a_prepare_that_fails_stops_the_chain_before_any_stage(run, walk, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PREPARE", "raise SystemExit(3)")
    ending = walk()
    assert (ending.state, ending.stage, codes(ending)) == ("failed", "", ["E508"])
    assert stage_events(run) == []


def test_processes_of_an_earlier_attempt_are_ended_before_anything_starts(run, walk):
    left = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(60)"], env={**os.environ, TOKEN: str(run.path)}
    )
    try:
        assert walk().state == "done"
        assert left.wait(5) == -signal.SIGTERM
    finally:
        left.kill()
        left.wait()


def test_a_disk_that_fails_under_the_run_is_a_clear_problem(run, walk):
    walk()
    (run.path / "versions.json").unlink()
    (run.path / "versions.json").mkdir()  # root may write anything but a folder
    ending = walk()
    assert (ending.state, codes(ending)) == ("failed", ["E513"])
    assert "versions.json" in ending.problems[0].where


def test_a_damaged_file_of_the_run_is_a_clear_problem(run, walk):
    walk()
    run.stage("reward").result.write_text("{")
    assert codes(walk()) == ["E510"]


def test_the_gate_needs_a_figure(run, walk):
    walk()
    write_json(run.stage("reward").result, {"after": {}})
    ending = walk()
    assert codes(ending) == ["E506"]
    assert "no figure" in ending.problems[0].what
