"""The watch, on real processes: what it sees, how it judges, and that it leaves nothing alive."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from launcher.backends.shell import find_processes
from launcher.rundir.folder import RunDir, write_json
from launcher.supervise import evidence, leaving, watch
from launcher.supervise.stop import StopFlag

# Starts the ranks and looks at nothing.
STARTER = """
import os, subprocess, sys, time
for rank in range(2):
    env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    subprocess.Popen([sys.executable, "-S", "-c", sys.argv[2]], env=env)
"""

pytestmark = pytest.mark.usefixtures("quick")


def follow(request, run: RunDir, stop: StopFlag | None = None) -> watch.Outcome:
    outcome = watch.follow(request, run, watch.stage_files(run, "sft", request.world), stop or StopFlag())
    assert find_processes(str(run.path)) == []
    assert outcome.still_alive == []
    return outcome


def problems_of(request, run: RunDir) -> list[str]:
    return [problem.text() for problem in evidence.find_problems(follow(request, run).evidence)]


def test_a_stage_whose_ranks_all_leave_their_marker_has_no_problem(run, ranks):
    assert problems_of(ranks("done(2)"), run) == []


def test_exit_code_0_with_a_marker_missing_is_a_failure(run, ranks):
    """A rank that the watch has seen alive is told as ended; on a busy machine it may have been too quick for that."""
    [text] = problems_of(ranks("time.sleep(1)\ndone(2) if rank == 0 else None"), run)
    assert "rank 1" in text
    assert "[E502]" in text or "[E503] the deepspeed launcher ended with exit code 0, no success marker of rank 1" in text


def test_markers_of_an_earlier_attempt_do_not_count(run, ranks):
    for rank in range(2):
        write_json(run.stage("sft").done(rank), {"world": 2})
    assert problems_of(ranks("pass"), run) != []


def test_another_world_than_the_planned_one_is_a_failure(run, ranks):
    [text] = problems_of(ranks("done(3)"), run)
    assert "[E504]" in text
    assert "3" in text


def test_a_rank_killed_by_a_signal_is_named_with_its_signal(run, ranks):
    code = """
    print("step 7")
    time.sleep(1)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    """
    [text] = problems_of(ranks(code), run)
    assert text.startswith("stage sft, rank 1 [E501] killed by SIGKILL")
    assert "rank1.log" in text


def test_the_killed_rank_outranks_what_its_peers_say_of_it(run, ranks):
    code = """
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.6)
    tell("E901", "RuntimeError: collective failed")
    sys.exit(1)
    """
    [text] = problems_of(ranks(code), run)
    assert "rank 1 [E501] killed by SIGSEGV" in text


def test_a_rank_that_tells_its_failure_is_quoted(run, ranks):
    code = """
    if rank == 0:
        tell("E551", "waited for a rank that had ended")
        sys.exit(5)
    tell("E502", "loss is not finite at step 12")
    sys.exit(5)
    """
    assert problems_of(ranks(code), run) == ["stage sft, rank 1 [E502] loss is not finite at step 12\n  hint: a hint"]


def test_an_unknown_code_of_a_rank_is_shown_not_fatal(run, ranks):
    [text] = problems_of(ranks("tell('E599', 'from the future'); sys.exit(5)", world=1), run)
    assert "[E502] [E599] from the future" in text


def test_a_signal_that_nobody_saw_is_told_from_the_launchers_exit_code(run, ranks):
    [text] = problems_of(ranks("os.kill(os.getpid(), signal.SIGKILL)", launcher="raise SystemExit(247)"), run)
    assert "exit code 247 (a rank killed by SIGKILL)" in text


def test_ranks_that_hang_after_a_death_are_ended(run, ranks):
    code = """
    time.sleep(1)
    if rank == 1:
        os._exit(3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    """
    [text] = problems_of(ranks(code, launcher=STARTER + "time.sleep(60)"), run)
    assert "rank 1 [E502] ended with exit code 3" in text


def test_a_launcher_that_exits_0_and_leaves_ranks_alive_is_a_failure(run, ranks):
    [text] = problems_of(ranks("time.sleep(60)", launcher=STARTER), run)
    assert "[E503] the deepspeed launcher ended with exit code 0, no success marker of rank 0, 1" in text
    assert "2 of its processes were still alive" in text


def test_a_launcher_killed_by_a_signal_is_named(run, ranks):
    killed = "import os, signal, sys\nprint('about to start', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    [text] = problems_of(ranks("pass", launcher=killed), run)
    assert "[E503] the deepspeed launcher ended by SIGKILL" in text
    assert "about to start" in text


def test_a_launcher_that_hangs_after_the_last_marker_is_ended_and_the_stage_counts(run, ranks):
    assert problems_of(ranks("done(2); time.sleep(60)"), run) == []


def test_a_stop_ends_all_processes_and_is_told_apart_from_a_failure(run, ranks):
    stop = StopFlag()
    threading.Timer(1.0, stop.ask, [signal.SIGTERM]).start()
    outcome = follow(ranks("time.sleep(60)"), run, stop)
    assert outcome.stopped


def test_a_second_signal_does_not_wait_for_ranks_that_ignore_term(run, ranks, monkeypatch):
    monkeypatch.setattr(watch, "TERM_GRACE_S", 60.0)
    stop = StopFlag()
    for delay_s in (0.8, 1.2):
        threading.Timer(delay_s, stop.ask, [signal.SIGINT]).start()
    started_s = time.monotonic()
    assert follow(ranks("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"), run, stop).stopped
    assert time.monotonic() - started_s < 20


def ask_when_listening(run: RunDir, stop: StopFlag, *numbers: signal.Signals) -> None:
    """Requests to stop, half a second apart, once the ranks are at their steps."""

    def ask() -> None:
        while not run.stage("sft").listening.exists():
            time.sleep(0.02)
        for number in numbers:
            time.sleep(0.5)
            stop.ask(number)

    threading.Thread(target=ask, daemon=True).start()


def test_ranks_that_are_asked_save_and_leave_and_are_not_told_as_failed(run, ranks):
    stop = StopFlag()
    ask_when_listening(run, stop, signal.SIGINT)
    outcome = follow(ranks("listen()\nleave_when_asked(7)"), run, stop)
    assert (outcome.stopped, outcome.unsaved) == (True, "")
    assert evidence.left_after(outcome.evidence) == 7
    assert outcome.evidence.deaths == ()


def test_a_launcher_that_hangs_behind_ranks_that_have_left_is_ended(run, ranks):
    hangs = STARTER + "time.sleep(60)"
    stop, started_s = StopFlag(), time.monotonic()
    ask_when_listening(run, stop, signal.SIGINT)
    outcome = follow(ranks("listen()\nleave_when_asked(7)", launcher=hangs), run, stop)
    assert evidence.left_after(outcome.evidence) == 7
    assert time.monotonic() - started_s < 20


def test_ranks_that_do_not_leave_in_time_are_ended_and_it_is_said(run, ranks, monkeypatch):
    monkeypatch.setattr(leaving, "SAVE_S", 1.0)
    stop = StopFlag()
    ask_when_listening(run, stop, signal.SIGINT)
    outcome = follow(ranks("listen()\ntime.sleep(60)"), run, stop)
    assert (outcome.stopped, outcome.unsaved) == (True, "its ranks did not save and leave within 1 s")
    assert evidence.left_after(outcome.evidence) is None


def test_a_second_request_ends_ranks_that_are_still_saving(run, ranks):
    stop, started_s = StopFlag(), time.monotonic()
    ask_when_listening(run, stop, signal.SIGINT, signal.SIGTERM)
    outcome = follow(ranks("listen()\ntime.sleep(60)"), run, stop)
    assert outcome.unsaved == "it was asked to stop a second time"
    assert time.monotonic() - started_s < 20


def test_a_rank_that_dies_while_the_others_save_ends_the_wait(run, ranks):
    stop = StopFlag()
    ask_when_listening(run, stop, signal.SIGINT)
    code = "listen()\nleave_when_asked(7) if rank else time.sleep(1.5) or os.kill(os.getpid(), signal.SIGKILL)"
    outcome = follow(ranks(code), run, stop)
    assert evidence.left_after(outcome.evidence) is None
    assert "rank 0 [E501]" in evidence.find_problems(outcome.evidence)[0].text()


def test_words_of_an_earlier_attempt_that_left_do_not_count(run, ranks):
    for rank in range(2):
        write_json(run.stage("sft").left(rank), {"world": 2, "step": 3})
    write_json(run.stage("sft").listening, {})
    outcome = follow(ranks("done(2)"), run)
    assert evidence.left_after(outcome.evidence) is None
    assert not run.stage("sft").listening.exists()


def test_a_rank_stopped_by_sigstop_is_ended_too(run, ranks):
    code = """
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert "rank 1 [E501]" in problems_of(ranks(code), run)[0]


def test_the_rank_of_an_outer_job_is_not_taken_for_ours(run, ranks, monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("LOCAL_RANK", "7")
    assert problems_of(ranks("done(2)"), run) == []


def test_prepare_needs_its_marker_too(run, ranks):
    files = watch.prepare_files(run)
    request = ranks("", world=1, launcher="raise SystemExit(0)")
    outcome = watch.follow(request, run, files, StopFlag())
    [problem] = evidence.find_problems(outcome.evidence)
    assert problem.code == "E508"


def test_control_characters_of_a_log_do_not_reach_the_terminal(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"one\n\x1b[31mred\n\xff\n" + b"x" * 10)
    assert watch.last_lines(log, 2) == ["�", "xxxxxxxxxx"]
    assert "\x1b" not in "".join(watch.last_lines(log))


def test_the_end_of_a_log_of_any_size_is_read_at_once(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(50_000_000_000)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast line\n")
    assert watch.last_lines(log, 1) == ["last line"]
