"""What ssh says -> the problem and its remedy. The texts were seen (OpenSSH 9.2, tests/cluster)."""

from __future__ import annotations

import pytest

from launcher.hosts.connection.failures import problem_of_connection

CHANGED = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key for node2 has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("said", "code", "hint"),
    [
        (CHANGED, "E418", "ssh-keygen -R node2"),
        ("No ED25519 host key is known for node2 and you have requested strict checking.", "E418", "ssh-keyscan"),
        ("root@node2: Permission denied (publickey).", "E419", "ssh-copy-id"),
        ("ssh: Could not resolve hostname node2: Name or service not known", "E417", "hostfile"),
        ("ssh: connect to host node2 port 22: Connection refused", "E417", "sshd"),
        ("ssh: connect to host node2 port 22: Connection timed out", "E417", "firewall"),
        ("Timeout, server node2 not responding.", "E417", "firewall"),
        ("/opt/venv/bin/python: No module named launcher", "E420", "same version"),
        ("bash: line 1: exec: /opt/venv/bin/python: not found", "E420", "cluster.python"),
        ("", "E417", "ssh node2 true"),
        ("something new", "E417", "ssh node2 true"),
    ],
)
def test_each_failure_has_its_code_and_its_remedy(said, code, hint):
    problem = problem_of_connection("node2", said)
    assert (problem.code, problem.where) == (code, "node2")
    assert hint in problem.hint


def test_a_flood_of_words_is_one_short_line():
    assert len(problem_of_connection("node2", "x" * 10_000).what) < 400
