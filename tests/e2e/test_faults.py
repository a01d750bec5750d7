"""Power of others over a run: kill -9 of each of its processes, and a tampered artifact. Real deepspeed, real ranks."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from launcher.backends.shell import find_processes
from launcher.rundir.artifact import find_damage
from launcher.rundir.events import read_events

pytestmark = pytest.mark.e2e

ENDED_S = 20.0  # a rank ends at once; launch.py looks once a second


def attempts(launcher) -> list[list[str]]:
    """For each attempt what happened to its stages."""
    found: list[list[str]] = []
    for event in read_events(launcher.run.events):
        if event["kind"] == "run.started":
            found.append([])
        if event["kind"] in ("stage.started", "stage.resumed", "stage.kept", "stage.finished", "stage.failed"):
            found[-1].append(f"{event['stage']} {str(event['kind'])[6:]}")
    return found


def wait_for_ranks(launcher, process, *, attempt: int) -> None:
    launcher.wait_for(lambda: len(attempts(launcher)) > attempt and "rank 1" in launcher.processes(), process)


def check_nothing_is_left(launcher) -> None:
    assert find_processes(str(launcher.run.path)) == []


def test_a_run_survives_the_death_of_each_of_its_processes(launcher):
    """One run, killed four times while it pretrains, each time resumed from its last checkpoint, then finished."""
    process = launcher.start("run", "job.yaml")
    launcher.wait_for_checkpoint(20, process)
    launcher.kill("rank 1")
    code, out, err = launcher.end(process)
    assert code == 5
    assert out.splitlines()[0] == str(launcher.run.path)
    assert "stage pretrain, rank 1 [E501] killed by SIGKILL" in err
    check_nothing_is_left(launcher)

    for number, (name, code_word) in enumerate((("deepspeed", "by SIGKILL"), ("launch.py", "with exit code 0")), start=1):
        process = launcher.start("resume")
        wait_for_ranks(launcher, process, attempt=number)
        launcher.wait_for_checkpoint(20 + 40 * number, process)
        launcher.kill(name)
        code, _, err = launcher.end(process)
        assert code == 5
        assert f"[E503] the deepspeed launcher ended {code_word}, no success marker of rank 0, 1" in err
        check_nothing_is_left(launcher)

    process = launcher.start("resume", "e2e")
    wait_for_ranks(launcher, process, attempt=3)
    launcher.wait_for_checkpoint(160, process)
    process.kill()
    process.communicate()
    assert "rank 0" in launcher.processes()  # the ranks go on without their controller
    code, out, _ = launcher("status")
    assert code == 0
    assert "interrupted" in out

    code, out, err = launcher("resume", launcher.run.path.name)
    assert code == 0, err
    assert "of an earlier attempt of this run" in err
    check_nothing_is_left(launcher)
    assert attempts(launcher) == [
        ["pretrain started", "pretrain failed"],
        ["pretrain resumed", "pretrain failed"],
        ["pretrain resumed", "pretrain failed"],
        ["pretrain resumed"],
        ["pretrain resumed", "pretrain finished", "sft started", "sft finished"],
    ]
    check_tampering(launcher)


def check_tampering(launcher) -> None:
    """A finished run: one bit of an artifact flipped is refused by name, and put back everything is kept."""
    weights = launcher.run.stage("pretrain").artifact / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, _, err = launcher("resume")
    assert code == 5
    assert f"{weights} [E505]" in err
    assert "Traceback" not in err
    weights.write_bytes(whole)
    code, out, _ = launcher("resume")
    assert code == 0
    assert attempts(launcher)[-1] == ["pretrain kept", "sft kept"]
    assert "loss (nats/token)" in out


def losses(run) -> list[tuple[object, object]]:
    lines = map(json.loads, run.stage("pretrain").metrics.read_text().splitlines())
    return [(line["step"], line.get("loss", line.get("held_out/loss"))) for line in lines]


def test_ctrl_c_and_resume_lose_no_step_and_no_bit(launcher):
    process = launcher.start("run", "job.yaml", "--stage", "pretrain", "--set", "stages.pretrain.steps=100")
    launcher.wait_for_checkpoint(20, process)
    for name in ("deepspeed", "launch.py"):  # a stray one kills nobody who is no rank
        os.kill(launcher.processes()[name].pid, signal.SIGUSR1)
    process.send_signal(signal.SIGINT)
    code, _, err = launcher.end(process)
    assert code == 6
    check_nothing_is_left(launcher)
    stopped = launcher.run
    [step] = [event["step"] for event in read_events(stopped.events) if event["kind"] == "stage.left"]
    assert "pretrain: asked to save and leave within 10 min" in err
    assert f"saved step {step}, stopped; go on with: launcher resume" in err
    assert find_damage(stopped.stage("pretrain").checkpoints / f"step{step}") == []

    code, _, err = launcher("resume", "--stage", "pretrain")
    assert code == 0, err
    assert f"goes on from the checkpoint of step {step}" in err
    assert launcher("run", "job.yaml", "--stage", "pretrain", "--set", "stages.pretrain.steps=100")[0] == 0
    assert losses(stopped) == losses(launcher.run)


def test_a_detached_run_is_seen_read_stopped_and_resumed_from_any_shell(launcher):
    code, out, err = launcher("run", "job.yaml", "--detach", "--set", "stages.pretrain.steps=2000")
    assert code == 0, err
    assert out.strip() == str(launcher.run.path)
    other = launcher.start("logs", "e2e", "prepare", "-f")
    launcher.wait_for_checkpoint(20, other)
    for words in ((), ("--detach",)):
        code, _, err = launcher("resume", "e2e", *words)
        assert (code, "[E507]" in err) == (5, True), err
    assert "pretrain" in launcher("status", "e2e")[1]
    code, _, err = launcher("stop", "e2e")
    assert code == 0
    assert "ranks at their steps save first" in err
    assert "stage.left" in [event["kind"] for event in read_events(launcher.run.events)]
    check_nothing_is_left(launcher)
    assert launcher.end(other)[0] == 0
    assert "stopped" in launcher("status", "e2e")[1]
    assert launcher("stop", "e2e")[1].strip().endswith("was not running")

    code, out, err = launcher("resume", "e2e", "job.yaml", "--set", "stages.pretrain.steps=3000", "--detach")
    assert (code, out.strip()) == (0, str(launcher.run.path)), err
    process = launcher.start("logs", "e2e", "prepare", "-f")
    launcher.wait_for(lambda: "rank 1" in launcher.processes(), process)
    assert launcher("stop", "e2e", "--now")[0] == 0
    assert "3000" in launcher("status", "e2e")[1]
    check_nothing_is_left(launcher)
    assert launcher.end(process)[0] == 0


def test_what_calibrate_has_started_ends_with_it_even_where_it_is_killed(launcher):
    token = str(launcher.folder.resolve() / "runs" / "calibration" / "measuring")
    process = launcher.start("calibrate")
    launcher.wait_for(lambda: any(one.rank is not None for one in find_processes(token)), process)
    process.kill()
    process.communicate()
    deadline_s = time.monotonic() + ENDED_S
    while (left := find_processes(token)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not left
