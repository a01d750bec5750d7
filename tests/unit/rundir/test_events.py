"""Events of several writers: each line is whole, also where a writer hangs or the disk has no locks."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from launcher.rundir import events
from launcher.rundir.events import append_event, read_events


def kinds(path: Path) -> list[object]:
    return [event["kind"] for event in read_events(path)]


def test_a_line_is_written_under_a_lock_that_is_free_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    flock = fcntl.flock
    monkeypatch.setattr(events.fcntl, "flock", lambda handle, how: (taken.append(how), flock(handle, how))[1])
    append_event(tmp_path / "events.jsonl", "one")
    with (tmp_path / "events.jsonl").open("a") as other:
        flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert taken == [fcntl.LOCK_EX | fcntl.LOCK_NB]


def test_who_holds_the_lock_is_waited_for_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOCK_S", 0.05)
    path = tmp_path / "events.jsonl"
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        append_event(path, "one")
    assert kinds(path) == ["one"]


def test_a_disk_without_locks_takes_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(events.fcntl, "flock", refuse)
    append_event(tmp_path / "events.jsonl", "one")
    assert kinds(tmp_path / "events.jsonl") == ["one"]
