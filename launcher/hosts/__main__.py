"""`python -m launcher.hosts …`: the programs that work between hosts.

agent                  on a host, at the end of a connection: takes one order from stdin
keep FOLDER NAME       on a host, detached: keeps the ranks of one run
fleet RUN STAGE        beside the controller: all hosts of one stage; ends as the stage ends
gather RUN STAGE       the same on node 0 of nodes that a scheduler started, where nobody can log in to anybody
join RUN STAGE PORT    on every such node: finds its place among them and becomes DeepSpeed's launch.py
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from launcher.errors import EXIT_USAGE, LauncherError
from launcher.rundir.folder import RunDir, write_json


def main(argv: list[str]) -> int:
    """Exit code."""
    match argv:
        case ["agent"]:
            return int(importlib.import_module("launcher.hosts.fleet.agent").serve())
        case ["keep", folder, name]:
            room = importlib.import_module("launcher.hosts.fleet.room").Room(Path(folder), name)
            return int(importlib.import_module("launcher.hosts.fleet.keeper").keep(room))
        case ["fleet", run, stage]:
            return int(importlib.import_module("launcher.hosts.fleet.lead").lead(Path(run), stage))
        case ["gather", run, stage]:
            return int(importlib.import_module("launcher.hosts.nodes.gather").gather(RunDir(Path(run)), stage))
        case ["join", run, stage, port] if port.isdecimal():
            return _join(RunDir(Path(run).resolve()), stage, int(port))
    sys.stderr.write(str(__doc__))
    return EXIT_USAGE


def _join(run: RunDir, stage: str, port: int) -> int:
    """The exit code where the node cannot take part; why is told in the stage's folder too, for whoever judges the stage."""
    try:
        return int(importlib.import_module("launcher.hosts.nodes.join").join(run, stage, port))
    except LauncherError as error:
        sys.stderr.write(error.text() + "\n")
        told = {"t": time.time(), "problems": [problem.as_dict() for problem in error.problems]}
        write_json(run.stage(stage).fleet_problem, told)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
