"""What ranks write while they run, told from one disk to another: the same bytes, and nothing that is not asked for."""

from __future__ import annotations

import os

import pytest

from launcher.hosts.files.words import MOST_BYTES, Words, write_word
from launcher.rundir.folder import StageDir

RANKS = range(2)


@pytest.fixture
def there(tmp_path):
    stage = StageDir(tmp_path / "there")
    stage.logs.mkdir(parents=True)
    return stage


@pytest.fixture
def here(tmp_path):
    return StageDir(tmp_path / "here")


def tell(words: Words, here: StageDir) -> list[str]:
    told = list(words.new())
    for word in told:
        write_word(here, words.ranks, word)
    return [str(word["file"]) for word in told]


def test_a_log_arrives_byte_by_byte_with_its_time(there, here):
    words, log = Words(there, RANKS), there.rank_log(1)
    for part in (b"one\n", "ä".encode()[:1], "ä".encode()[1:] + b"\xff\x00\r\n"):
        with log.open("ab") as file:
            file.write(part)
        assert tell(words, here) == ["logs/rank1.log"]
        assert tell(words, here) == []
    assert here.rank_log(1).read_bytes() == log.read_bytes()
    assert here.rank_log(1).stat().st_mtime_ns == log.stat().st_mtime_ns


def test_what_came_from_the_controller_is_not_told_again_and_goes_on_there(there, here):
    here.logs.mkdir(parents=True)
    for stage in (there, here):
        stage.rank_log(0).write_text("before\n")
    words = Words(there, RANKS)
    assert tell(words, here) == []
    with there.rank_log(0).open("a") as file:
        file.write("after\n")
    tell(words, here)
    assert here.rank_log(0).read_text() == "before\nafter\n"


def test_metrics_that_were_written_anew_replace_the_old(there, here):
    there.metrics.write_text("1\n2\n3\n")
    words = Words(there, RANKS)
    (there.path / "new").write_text("1\n2\n9\n9\n")
    os.replace(there.path / "new", there.metrics)
    tell(words, here)
    assert here.metrics.read_text() == "1\n2\n9\n9\n"


def test_a_marker_and_a_failure_are_told_once_and_before_logs(there, here):
    words = Words(there, RANKS)
    for path in (there.done(0), there.problem(1), there.rank_log(0)):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    assert tell(words, here) == ["done/rank0.json", "problems/rank1.json", "logs/rank0.log"]
    assert tell(words, here) == []
    assert here.problem(1).read_text() == "{}"


def test_a_long_log_comes_in_parts(there, here):
    words = Words(there, RANKS)
    there.rank_log(0).write_bytes(b"x" * (MOST_BYTES + 1))
    assert tell(words, here) + tell(words, here) + tell(words, here) == ["logs/rank0.log"] * 2
    assert here.rank_log(0).stat().st_size == MOST_BYTES + 1


@pytest.mark.parametrize("name", ["../job.json", "logs/rank2.log", "prepared.json", "/etc/x", "logs/launcher.log"])
def test_a_name_that_is_none_of_the_hosts_is_passed_over(name, here, tmp_path):
    write_word(here, RANKS, {"file": name, "at": 0, "text": "x", "mtime_ns": 1})
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_write_no_metrics(there, here):
    there.metrics.write_text("1\n")
    assert tell(Words(there, range(2, 4)), here) == []


def test_a_gap_is_left_to_the_fetch(there, here):
    write_word(here, RANKS, {"file": "logs/rank0.log", "at": 5, "text": "x", "mtime_ns": 1})
    assert here.rank_log(0).read_bytes() == b""
