"""What a connection to a host starts there: it reads the first line, and hands it to the module of its verb. DO.

keep                            an order: from then on a pipe to the run's keeper (joining.py)
look, clock, listen, reach      questions, one after the other until the connection ends (visit.py)
take, list, give                files of a run, to and from a host that does not share the controller's disk (porter.py)

Only the module of the verb is imported: hundreds of hosts are asked at once, and each pays a cold Python.
"""

from __future__ import annotations

import importlib

from launcher.errors import EXIT_USAGE
from launcher.hosts.connection.wire import MAX_LINE, BadLine, parse, say

# verb -> (module, its function of the first message, which returns the exit code)
VERBS = {
    "keep": ("launcher.hosts.fleet.joining", "join"),
    **dict.fromkeys(("look", "clock", "listen", "reach"), ("launcher.hosts.checks.visit", "answer")),
    **dict.fromkeys(("take", "list", "give"), ("launcher.hosts.files.porter", "carry")),
}


def serve() -> int:
    """The exit code. Speaks on stdin and stdout alone."""
    with open(0, "rb", buffering=0, closefd=False) as stdin:  # what follows the line is left for the relay
        first = stdin.readline(MAX_LINE)
    try:
        message = parse(first)
        if (verb := message.get("do")) not in VERBS:
            raise BadLine(f"there is no {verb!r} in this version")
        module, name = VERBS[str(verb)]
        return int(getattr(importlib.import_module(module), name)(message))
    except BadLine as error:
        say({"kind": "refused", "what": str(error)})
        return EXIT_USAGE
