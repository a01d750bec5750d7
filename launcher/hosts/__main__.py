"""`python -m launcher.hosts …`: the programs that work between hosts.

agent                  on a host, at the end of a connection: takes one order from stdin
keep FOLDER NAME       on a host, detached: keeps the ranks of one run
fleet RUN STAGE        beside the controller: all hosts of one stage; ends as the stage ends
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from launcher.errors import EXIT_USAGE


def main(argv: list[str]) -> int:
    """Exit code."""
    match argv:
        case ["agent"]:
            return int(importlib.import_module("launcher.hosts.agent").serve())
        case ["keep", folder, name]:
            room = importlib.import_module("launcher.hosts.room").Room(Path(folder), name)
            return int(importlib.import_module("launcher.hosts.keeper").keep(room))
        case ["fleet", run, stage]:
            return int(importlib.import_module("launcher.hosts.fleet").lead(Path(run), stage))
    sys.stderr.write(str(__doc__))
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
