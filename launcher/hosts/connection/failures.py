"""What ssh and a host's shell say when a connection fails -> a problem with its remedy. Pure.

The texts are OpenSSH's (9.2 to 10.2) and do not depend on the locale.
"""

from __future__ import annotations

import re
import shlex

from launcher.errors import Problem

MOST_CHARACTERS = 300
# The first that fits counts. {host} and {said} are filled in.
_SAYINGS: tuple[tuple[str, str, str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed|Host key verification failed.*changed",
        "E418",
        "its host key is another one than known_hosts has: {said}",
        "if the host was set up anew, remove the old key with `ssh-keygen -R {host}` and add the new one; if not, somebody"
        " may be listening in between",
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "E418",
        "its host key is not known here",
        "compare and add it: `ssh-keyscan {host} >> ~/.ssh/known_hosts`, or log in once with ssh",
    ),
    (
        r"Permission denied|Too many authentication failures|Authentication failed|no mutual signature",
        "E419",
        "the login was refused: {said}",
        "put your public key there (`ssh-copy-id {host}`), or name user and key for {host} in ~/.ssh/config",
    ),
    (
        r"Could not resolve hostname|Name or service not known|nodename nor servname",
        "E417",
        "its name is not known here: {said}",
        "correct the hostfile, or add the host to DNS, /etc/hosts or ~/.ssh/config",
    ),
    (
        r"Connection refused",
        "E417",
        "nothing listens there: {said}",
        "start sshd on the host, or name its port in ~/.ssh/config",
    ),
    (
        r"timed out|No route to host|Network is unreachable|Host is down|not responding",
        "E417",
        "it does not answer: {said}",
        "check that the host is on and that a firewall lets port 22 through",
    ),
    (
        r"No module named '?launcher",
        "E420",
        "this Python there has no zerolaunch: {said}",
        "install the same version there, in the same place, or name that host's Python in cluster.python",
    ),
    (
        r"No such file or directory|not found|Exec format error|cannot execute",
        "E420",
        "the program could not be started there: {said}",
        "install Python and zerolaunch there at the same path, or name the path in cluster.python",
    ),
)


def problem_of_connection(host: str, said: str) -> Problem:
    """The problem that stands behind what was last said; E417 where the connection ended without a word."""
    text = _tidy(said)
    for pattern, code, what, hint in _SAYINGS:
        if re.search(pattern, said, flags=re.IGNORECASE):
            values = {"host": shlex.quote(host), "said": text}
            return Problem(code=code, where=host, what=what.format(**values), hint=hint.format(**values))
    what = f"the connection broke: {text}" if text else "the connection ended without a word"
    return Problem(code="E417", where=host, what=what, hint=f"try `ssh {shlex.quote(host)} true`")


def problem_of_same_machine(host: str, other: str) -> Problem:
    """Of `host`, where its name and that of `other` lead to one machine: the ranks of one of the two would never start."""
    what = f"is the same machine as {other}: both names lead there"
    hint = (
        "name each machine once, with all of its slots; if these should be two, mend where their names lead:"
        " DNS, /etc/hosts or ~/.ssh/config"
    )
    return Problem(code="E431", where=host, what=what, hint=hint)


def _tidy(said: str) -> str:
    """The last line that is not decoration, in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip(" @-\t")]
    return lines[-1][:MOST_CHARACTERS] if lines else ""
