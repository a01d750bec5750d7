"""`launcher node RUN --from DIR`: this node's part in a run whose nodes a scheduler starts, all with the same command.

SLURM, mpirun, Kubernetes, SkyPilot and dstack start it from what was rendered. Node 0 controls the run as `launcher run` does
on one machine, the others follow it. All of them end with the exit code of the run.
"""

from __future__ import annotations

import os
import signal
import socket
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from pathlib import Path

from launcher.cli.common import add_json, say, show
from launcher.cli.run import add_stage, finish
from launcher.errors import EXIT_BUG, LauncherError, Problem
from launcher.hosts.checks.needs import paths_on_hosts
from launcher.hosts.machine.facts import HERE, HostFacts
from launcher.hosts.machine.gpus import find_gpus
from launcher.hosts.machine.look import look
from launcher.hosts.nodes.alike import without_gpus
from launcher.hosts.nodes.board import is_led, leading, say_end
from launcher.hosts.nodes.follow import follow, say_refusal
from launcher.hosts.nodes.place import Place, check_place, place_of
from launcher.plan.plan import Machine
from launcher.rundir.folder import RunDir
from launcher.supervise.control import check_stage, control
from launcher.supervise.create import Planned
from launcher.supervise.doctor import check_node
from launcher.supervise.journal import Journal
from launcher.supervise.lock import forget_other_hosts, refuse_held
from launcher.supervise.queue import go_again
from launcher.supervise.sealed import read_sealed


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, on a volume that all nodes share")
    help_text = "what `launcher render` wrote, as this node has it"
    parser.add_argument("--from", dest="source", metavar="DIR", type=Path, required=True, help=help_text)
    add_json(parser)
    add_stage(parser)


def run(args: Namespace) -> int:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # SLURM tells every node that the time is nearly over; node 0 listens
    folder = RunDir(Path(os.path.realpath(args.run)))
    try:
        return _take_part(args, folder)
    except LauncherError as error:
        _note_refusal(folder, error)
        raise


def _take_part(args: Namespace, folder: RunDir) -> int:
    place = place_of(os.environ)
    try:
        planned = _planned(args, place)
        facts = _look(planned, place, folder)
    except LauncherError as error:
        if not place.node:
            with suppress(LauncherError):
                _send_home(folder, place, error.exit_code)
        raise
    say(f"node {place.node} of {place.nodes}, told by {place.told_by}; node 0 is {place.master}")
    if place.node:
        return follow(folder, place.node, facts)
    return _lead(args, folder, planned)


def _planned(args: Namespace, place: Place) -> Planned:
    """What was rendered, where this node can have its part in it. LauncherError."""
    job, job_text, plan = read_sealed(args.source)
    planned = Planned(job=job, job_text=job_text, plan=plan)
    check_place(place, planned=plan.machine.nodes)
    check_stage(planned, args.stage)
    _check_gpus(plan.machine, node=place.node)
    return planned


def _look(planned: Planned, place: Place, folder: RunDir) -> HostFacts:
    """This node, where nothing that `doctor` looks for on a host stands against its part. LauncherError with what does."""
    facts = look(HERE, folder=folder.path, paths=paths_on_hosts(planned.job))
    if planned.plan.machine.device == "cpu":
        facts = without_gpus(facts)
    for one in check_node(planned.job, planned.plan, facts, node=place.node, folder=folder.path):
        say(one.problem.text())
    return facts


def _send_home(folder: RunDir, place: Place, code: int) -> None:
    """Nodes that came with a first one that takes no part; those of another one that leads are left alone."""
    if is_led(folder):
        return
    _take(folder)
    with leading(folder):
        say_end(folder, nodes=place.nodes, code=code)


def _take(folder: RunDir) -> None:
    """The run, from whoever had it on another machine: a scheduler starts one node 0. LauncherError E404, E507."""
    _make_folder(folder)
    forget_other_hosts(folder)
    refuse_held(folder)  # before its board is wiped


def _note_refusal(folder: RunDir, error: LauncherError) -> None:
    """For whoever waits for the run elsewhere. Who comes before node 0 makes the folder, as those do who take part."""
    with suppress(LauncherError, OSError):  # without a place among the nodes it may be anybody's folder
        place_of(os.environ)
        folder.path.mkdir(parents=True, exist_ok=True)
    if folder.path.is_dir():
        Journal(folder).problems("node.refused", list(error.problems), host=socket.gethostname())
        say_refusal(folder, error)


def _check_gpus(machine: Machine, *, node: int) -> None:
    """LauncherError E402 where the node has fewer GPUs than ranks."""
    found = len(find_gpus(os.environ)) if machine.device == "cuda" else machine.slots
    if found < machine.slots:
        what = f"{found} GPUs can be used here, the plan has {machine.slots} ranks on each node"
        hint = "ask the scheduler for as many, and see that the image has the driver's libraries"
        raise LauncherError(Problem(code="E402", where=f"node {node}", what=what, hint=hint))


def _lead(args: Namespace, folder: RunDir, planned: Planned) -> int:
    """Node 0, as a controller. The others end as it does, whatever ends it."""
    code = EXIT_BUG
    _take(folder)
    show(str(folder.path))
    with leading(folder):
        try:
            ending = control(folder, planned, only=args.stage, is_written=args.source.resolve() == folder.path)
            code = finish(folder, ending, as_json=args.json)
        except LauncherError as error:
            code = error.exit_code
            raise
        finally:
            say_end(folder, nodes=planned.plan.machine.nodes, code=code)
    if ending.signal == signal.SIGUSR1.name and planned.job.cluster.slurm and planned.job.cluster.slurm.requeue:
        say(go_again(folder))
    return code


def _make_folder(folder: RunDir) -> None:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.path.chmod(0o700)
    except OSError as error:
        hint = "see whether the volume is mounted there, and whether its files belong to this user"
        what = f"the run folder cannot be made: {error.strerror}"
        raise LauncherError(Problem(code="E404", where=str(folder.path), what=what, hint=hint)) from None
