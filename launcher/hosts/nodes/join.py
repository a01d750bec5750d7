"""`python -m launcher.hosts join RUN STAGE PORT`: this node's part in a stage that the same command starts on every node. DO.

place → check against the plan → wait until node 0's name is known → become DeepSpeed's launch.py. Nobody watches here: whoever
started it looks for the ranks' markers.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping

from launcher.backends.fleet_order import FleetOrder, read_fleet_order, with_devices, with_meeting
from launcher.backends.local import RESERVED
from launcher.backends.request import TOKEN
from launcher.backends.shell import become
from launcher.errors import LauncherError, Problem
from launcher.hosts.machine.gpus import find_gpus
from launcher.hosts.nodes.place import Place, check_place, place_of
from launcher.rundir.folder import RunDir

NAME_WAIT_S = 300.0  # names of a headless Service appear when the pod is there, and resolvers keep a "no" for a while


def join(run: RunDir, stage: str, port: int, environ: Mapping[str, str] = os.environ) -> int:
    """Does not return. LauncherError E440, E441, E510 or E520 where the node cannot take part."""
    place, order = place_of(environ), order_of(run, stage)
    check_part(place, order)
    if place.node:
        wait_for_name(place.master)
    argv = with_meeting(order.argv, node=place.node, addr=place.master, port=port)
    if order.env.get("DS_ACCELERATOR") == "cuda":
        argv = with_devices(argv, host=order.hosts[place.node], devices=[gpu.number for gpu in find_gpus(environ)])
    outer = {name: value for name, value in environ.items() if name not in RESERVED}
    become((sys.executable, *argv[1:]), {**outer, **order.env, TOKEN: str(run.path)})


def order_of(run: RunDir, stage: str) -> FleetOrder:
    try:
        return read_fleet_order(run, stage)
    except (OSError, ValueError) as error:
        what = f"the order of stage {stage} cannot be read: {str(error).splitlines()[0]}"
        hint = "render the job again, with the version that the nodes have"
        raise LauncherError(Problem(code="E510", where=str(run.path), what=what, hint=hint)) from None


def check_part(place: Place, order: FleetOrder) -> None:
    """LauncherError E441 where the nodes are others than planned, or this one has no rank of the stage."""
    check_place(place, planned=order.nodes or len(order.hosts))
    if place.node >= len(order.hosts):
        what = f"stage {order.stage} is for the first {len(order.hosts)} nodes"
        raise LauncherError(Problem(code="E441", where=f"node {place.node}", what=what, hint="leave this node out of it"))


def wait_for_name(name: str, wait_s: float = NAME_WAIT_S) -> None:
    """Until the name of node 0 means an address. LauncherError E520."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            return
        except OSError as error:
            if time.monotonic() > deadline_s:
                what = f"the name of node 0 is not known after {wait_s:.0f} s: {error.strerror}"
                hint = "see whether its pod or machine was started, and what its log says"
                raise LauncherError(Problem(code="E520", where=name, what=what, hint=hint)) from None
        time.sleep(1.0)
