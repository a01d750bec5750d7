"""Signals become a flag, and only while a run is controlled."""

from __future__ import annotations

import os
import signal

from launcher.supervise.stop import StopFlag, listening


def test_one_signal_asks_two_demand_and_a_closed_terminal_does_neither():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with listening(StopFlag()) as flag:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not flag.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert (flag.asked, flag.hard, flag.signal_name) == (True, False, "SIGTERM")
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.hard
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_the_word_that_the_time_is_nearly_over_asks_once_and_is_told_apart():
    with listening(StopFlag()) as flag:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert (flag.asked, flag.hard) == (True, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (flag.hard, flag.signal_name) == (True, "SIGUSR1")


def test_who_was_asked_by_a_person_first_is_not_asked_again_by_the_clock():
    with listening(StopFlag()) as flag:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (flag.hard, flag.signal_name) == (False, "SIGINT")
