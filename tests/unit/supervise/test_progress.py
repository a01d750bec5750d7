"""metrics.jsonl as it grows, as lines for people."""

from __future__ import annotations

import io

from launcher.supervise.journal import Journal
from launcher.supervise.progress import Progress


def progress_of(run) -> Progress:
    run.stage("sft").path.mkdir(parents=True)
    return Progress("sft", run.stage("sft").metrics, 300, Journal(run))


def write(run, *lines: str, mode: str = "a") -> None:
    with run.stage("sft").metrics.open(mode) as file:
        file.write("".join(lines))


def test_the_newest_line_is_said_every_few_seconds_and_each_only_once(run, capsys):
    progress = progress_of(run)
    write(run, '{"step": 10, "t": 1.0, "loss": 2.5}\n', '{"step": 20, "t": 2.0, "loss": 2.25, "lr": 0.001}\n', '{"step": 3')
    for now_s in (0.0, 1.0, 6.0, 12.0):
        progress.tick(now_s)
    write(run, '0, "loss": 1.0}\n')
    progress.tick(18.0)
    assert capsys.readouterr().err == "  sft  step 20/300  loss 2.25  lr 0.001\n  sft  step 30/300  loss 1\n"


def test_held_out_lines_and_torn_or_foreign_ones_are_passed_over(run, capsys):
    progress = progress_of(run)
    write(run, '{"step": 10, "held_out/loss": 2.5}\n', "[1]\n", "torn\n")
    progress.tick(0.0)
    assert capsys.readouterr().err == ""


def test_lines_of_an_earlier_attempt_are_not_said_again(run, capsys):
    progress = progress_of(run)
    write(run, '{"step": 10, "loss": 2.5}\n')
    progress.start()
    progress.tick(0.0)
    assert capsys.readouterr().err == ""
    write(run, '{"step": 5, "loss": 3}\n', mode="w")  # the resumed stage rewrote its metrics, shorter
    progress.tick(10.0)
    assert capsys.readouterr().err == "  sft  step 5/300  loss 3\n"


def test_a_terminal_that_was_closed_does_not_end_the_run(run, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stderr", Closed())
    journal = Journal(run)
    journal.say("text")
    assert journal.quiet


def test_events_that_cannot_be_written_are_said_once_and_do_not_end_the_run(run, capsys):
    run.events.mkdir()
    journal = Journal(run)
    journal.event("a")
    journal.event("b")
    assert capsys.readouterr().err.count("events.jsonl cannot be written") == 1
