"""Hostfiles: DeepSpeed's format, without what DeepSpeed takes by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import LauncherError
from launcher.spec.hostfile import parse_hostfile, read_hostfile

SAMPLES = Path(__file__).parents[3] / "hostfiles"


def hosts(text: str) -> list[tuple[str, int]]:
    return [(entry.host, entry.slots) for entry in parse_hostfile(text, file_name="hosts")]


def test_hosts_come_in_order_without_comments_and_with_any_line_end() -> None:
    text = "# comment\r\nworker-1 slots=8\r\n\r\n10.0.0.2   slots=4  # trailing\n::1 slots=1\nnode_3.local slots=16"
    assert hosts(text) == [("worker-1", 8), ("10.0.0.2", 4), ("::1", 1), ("node_3.local", 16)]


def test_the_samples_are_read() -> None:
    assert [(entry.host, entry.slots) for entry in read_hostfile(SAMPLES / "one_node")] == [("localhost", 2)]
    assert [entry.slots for entry in read_hostfile(SAMPLES / "two_nodes")] == [8, 8]


@pytest.mark.parametrize(
    "line",
    [
        *["-oProxyCommand=touch\tx slots=1", "-oProxyCommand=id slots=1", "w0;id slots=1", "$(id) slots=1", "w0,w1 slots=1"],
        *["w[0-9999] slots=1", "a@b slots=1", f"{'x' * 300} slots=1", "w\x1b[31m slots=1", "w0\u202e slots=1", "-w slots=1"],
        *[
            "w0 slots=4garbage",
            "w0 slots=0",
            "w0 slots=-1",
            "w0 slots=100000000000000",
            "w0 slots=1025",
            "w0 slots= 4",
            "w0 slots=٣",
        ],
        *["w0", "w0 8", "w0 slots=8 slots=8", "slots=8", "w0\tslots=8", "fe80::1%eth0 slots=1", "w0\nw0\r slots=1"],
    ],
)
def test_a_line_that_is_not_a_host_and_its_slots_is_refused(line: str) -> None:
    with pytest.raises(LauncherError) as caught:
        parse_hostfile(f"ok slots=1\n{line}\n", file_name="hosts")
    assert all(problem.code == "E116" and problem.where.startswith("hosts:") for problem in caught.value.problems)
    assert "\x1b" not in caught.value.text()


def test_a_host_stands_once_whatever_its_case() -> None:
    with pytest.raises(LauncherError, match="host W1 stands here and in line 1"):
        parse_hostfile("w1 slots=1\nW1 slots=2\n", file_name="hosts")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_a_hostfile_without_hosts_is_refused(text: str) -> None:
    with pytest.raises(LauncherError, match="names no host"):
        parse_hostfile(text, file_name="hosts")


def test_a_missing_hostfile_is_an_error_and_never_one_node(tmp_path: Path) -> None:
    with pytest.raises(LauncherError) as caught:
        read_hostfile(tmp_path / "none")
    assert caught.value.problems[0].code == "E101"
