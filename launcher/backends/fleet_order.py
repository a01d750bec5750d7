"""FleetOrder: what a fleet needs to start one stage on many hosts, as one file of the run folder. Pure but for the file."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from launcher.rundir.folder import RunDir, write_json

_WORLD_INFO = "--world_info="
_MEETING = re.compile(r"\{(addr|port|node)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOrder:
    """One stage on its hosts. What starts an agent on each is text here, so that every kind of cluster has the same fleet."""

    stage: str
    hosts: tuple[str, ...]
    slots: int  # ranks on each
    agents: tuple[tuple[str, ...], ...] = ()  # argv, one for each host; none where hosts come by themselves
    argv: tuple[str, ...]  # of launch.py on each host; {node}, {addr} and {port} are filled in there
    env: dict[str, str]
    secrets: tuple[str, ...] = ()  # names; the values are taken from the fleet's own environment, and are in no file
    port: int | None = None  # on which ranks meet; None: one that the first host finds free
    nodes: int | None = None  # of the plan, where hosts come by themselves: some may have no part in this stage


def launch_argv(python: str, hosts: Sequence[str], devices: Sequence[int], words: Sequence[str]) -> tuple[str, ...]:
    """DeepSpeed's program for one node, which starts `launcher.stages` with `words` for each of `devices`."""
    launch = (python, "-u", "-P", "-m", "deepspeed.launcher.launch", _world_info({host: list(devices) for host in hosts}))
    meeting = ("--node_rank={node}", "--master_addr={addr}", "--master_port={port}")
    return (*launch, *meeting, "--no_local_rank", "--module", "launcher.stages", *words)


def with_meeting(argv: Sequence[str], *, node: int, addr: str, port: int) -> tuple[str, ...]:
    """launch_argv with what is known once the hosts have met."""
    values = {"node": str(node), "addr": addr, "port": str(port)}
    return tuple(_MEETING.sub(lambda found: values[found[1]], word) for word in argv)


def with_devices(argv: Sequence[str], *, host: str, devices: Sequence[int]) -> tuple[str, ...]:
    """launch_argv with the GPUs that a scheduler gave to this host's job, where others use the rest of the host."""
    return tuple(_with_devices(word, host, devices) if word.startswith(_WORLD_INFO) else word for word in argv)


def _with_devices(word: str, host: str, devices: Sequence[int]) -> str:
    world = json.loads(base64.urlsafe_b64decode(word.removeprefix(_WORLD_INFO)))
    return _world_info({**world, host: list(devices[: len(world[host])])})


def _world_info(world: Mapping[str, Sequence[int]]) -> str:
    return _WORLD_INFO + base64.urlsafe_b64encode(json.dumps(dict(world)).encode()).decode()


def fleet_path(run: RunDir, stage: str) -> Path:
    return run.rendered / f"{stage}.fleet.json"


def write_fleet_order(run: RunDir, order: FleetOrder) -> None:
    write_json(fleet_path(run, order.stage), asdict(order))


def read_fleet_order(run: RunDir, stage: str) -> FleetOrder:
    """OSError, or ValueError where a field is missing or of another type: the folder was written by another version."""
    return TypeAdapter(FleetOrder).validate_json(fleet_path(run, stage).read_bytes())
